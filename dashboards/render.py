"""Dashboards as Grafana's classic JSON, which every release since 10 imports."""

from __future__ import annotations

import json
from collections.abc import Mapping
from string import ascii_uppercase

from grafana_foundation_sdk.builders import common, heatmap, prometheus, stat, timeseries
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as looks
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import heatmap as heatmaps
from grafana_foundation_sdk.models.prometheus import PromQueryFormat, QueryEditorMode

from dashboards.model import Dashboard, Panel, Query
from snakepit_bridge.telemetry.names import BUILD_INFO

__all__ = ["as_json"]

TAG = "snakepit-bridge"
_SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
_COLUMNS_OF_HEAT = 120.0
"""More would be narrower than a scrape on the usual screen and hour."""


def as_json(dashboard: Dashboard) -> str:
    """Write a dashboard; the same always gives the same text."""
    builder = (
        builders.Dashboard(dashboard.title)
        .uid(dashboard.uid)
        .description(dashboard.about)
        .tags([TAG])
        .time("now-1h", "now")
        .refresh("30s")
        .timezone("browser")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .link(
            builders.DashboardLink("Snakepit bridge")
            .type(models.DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .include_vars(include_vars=True)
            .keep_time(keep_time=True)
        )
        .variables(_variables())
    )
    number = 0
    for row in dashboard.rows:
        number += 1
        builder.with_row(builders.Row(row.title).id(number))
        for panel in row.panels:
            number += 1
            builder.with_panel(_STYLES[panel.style](panel, number))
    tree = _without_nulls(json.loads(json.dumps(builder.build(), cls=JSONEncoder)))
    return json.dumps(tree, indent=2, ensure_ascii=False) + "\n"


def _without_nulls(tree: object) -> object:
    """The threshold that begins at minus infinity is the only null that says something."""
    if isinstance(tree, Mapping):
        return {
            key: _without_nulls(value)
            for key, value in tree.items()
            if value is not None or set(tree) == {"value", "color"}
        }
    return [_without_nulls(each) for each in tree] if isinstance(tree, list) else tree


def _variables() -> list[Builder[models.VariableModel]]:
    return [
        builders.DatasourceVariable("datasource").label("Data source").type("prometheus"),
        _label("job", f"label_values({BUILD_INFO.name}, job)"),
        _label("instance", f'label_values({BUILD_INFO.name}{{job=~"$job"}}, instance)'),
    ]


def _label(name: str, query: str) -> builders.QueryVariable:
    everything = models.VariableOption(selected=True, text=["All"], value=["$__all"])
    return (
        builders.QueryVariable(name)
        .label(name.capitalize())
        .datasource(_SOURCE)
        .query(query)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(multi=True)
        .include_all(include_all=True)
        .all_value(".+")
        .current(everything)
    )


def _target(query: Query, ref: str) -> prometheus.Dataquery:
    return (
        prometheus.Dataquery()
        .expr(query.expr)
        .legend_format(query.legend)
        .exemplar(query.exemplars)
        .editor_mode(QueryEditorMode.CODE)
        .ref_id(ref)
        .datasource(_SOURCE)
    )


def _thresholds(alarms: tuple[float, ...]) -> builders.ThresholdsConfig:
    colours = ("yellow", "red")[-len(alarms) :] if alarms else ()
    steps = [models.Threshold(value=None, color="green")]
    steps += [
        models.Threshold(value=value, color=colour)
        for value, colour in zip(alarms, colours, strict=True)
    ]
    return builders.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps)


def _lines(panel: Panel, number: int) -> Builder[models.Panel]:
    stacked = panel.style == "stacked"
    several = len(panel.queries) > 1 or any("{{" in query.legend for query in panel.queries)
    legend = common.VizLegendOptions().placement(looks.LegendPlacement.BOTTOM)
    legend = legend.show_legend(show_legend=True).display_mode(
        looks.LegendDisplayMode.TABLE if several else looks.LegendDisplayMode.LIST
    )
    tooltip = common.VizTooltipOptions().mode(looks.TooltipDisplayMode.MULTI)
    builder = (
        timeseries.Panel()
        .id(number)
        .title(panel.title)
        .description(panel.about)
        .datasource(_SOURCE)
        .height(9)
        .span(panel.width)
        .unit(panel.unit)
        .axis_soft_min(0)
        .line_width(1)
        .fill_opacity(40 if stacked else 8)
        .show_points(looks.VisibilityMode.NEVER)
        .legend(legend.calcs(["mean", "max", "lastNotNull"] if several else []))
        .tooltip(tooltip.sort(looks.SortOrder.DESCENDING))
        .thresholds(_thresholds(panel.alarms))
    )
    if stacked:
        builder.stacking(common.StackingConfig().group("A").mode(looks.StackingMode.NORMAL))
    if panel.alarms:
        builder.thresholds_style(
            common.GraphThresholdsStyleConfig().mode(looks.GraphTresholdsStyleMode.DASHED)
        )
    for ref, query in zip(ascii_uppercase, panel.queries, strict=False):
        builder.with_target(_target(query, ref).range())
    return builder


def _heat(panel: Panel, number: int) -> Builder[models.Panel]:
    (query,) = panel.queries
    colours = (
        heatmap.HeatmapColorOptions()
        .mode(heatmaps.HeatmapColorMode.SCHEME)
        .scheme("Oranges")
        .scale(heatmaps.HeatmapColorScale.EXPONENTIAL)
        .exponent(0.5)
        .steps(64)
    )
    return (
        heatmap.Panel()
        .id(number)
        .title(panel.title)
        .description(panel.about)
        .datasource(_SOURCE)
        .height(9)
        .span(panel.width)
        .max_data_points(_COLUMNS_OF_HEAT)
        .calculate(calculate=False)
        .color(colours)
        .cell_gap(1)
        .rows_frame(heatmap.RowsHeatmapOptions().layout(looks.HeatmapCellLayout.AUTO))
        .y_axis(heatmap.YAxisConfig().unit(panel.unit))
        .cell_values(heatmap.CellValues().unit("short"))
        .filter_values(heatmap.FilterValueRange().le(1e-9))
        .show_tooltip()
        .hide_y_histogram()
        .show_legend()
        .with_target(_target(query, "A").format(PromQueryFormat.HEATMAP).range())
    )


def _number(panel: Panel, number: int) -> Builder[models.Panel]:
    several = any("{{" in query.legend for query in panel.queries)
    builder = (
        stat.Panel()
        .id(number)
        .title(panel.title)
        .description(panel.about)
        .datasource(_SOURCE)
        .height(4)
        .span(panel.width)
        .unit(panel.unit)
        .no_value("–")
        .color_mode(looks.BigValueColorMode.VALUE if panel.alarms else looks.BigValueColorMode.NONE)
        .graph_mode(looks.BigValueGraphMode.NONE)
        .text_mode(
            looks.BigValueTextMode.VALUE_AND_NAME if several else looks.BigValueTextMode.VALUE
        )
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .thresholds(_thresholds(panel.alarms))
    )
    for ref, query in zip(ascii_uppercase, panel.queries, strict=False):
        builder.with_target(_target(query, ref).instant())
    return builder


_STYLES = {"lines": _lines, "stacked": _lines, "heat": _heat, "number": _number}
