# Needs a Python from 3.11 with venv, and nothing else. `make` alone lists the targets.
#
#   PYTHON        makes the environments          make test PYTHON=python3.12
#   PROTO_PYTHON  makes .proto-env, 3.11 or 3.12  make proto PROTO_PYTHON=python3.11
#   ARGS          goes to the program             make test ARGS="-k watch"
#   METRICS_PORT  9464, another, 0 (any), or off  make run METRICS_PORT=off

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run test test-oldest lint format proto proto-check dashboards bench mutants clean

PYTHON ?= python3
PROTO_PYTHON ?= $(PYTHON)
ARGS ?=
METRICS_PORT ?= 9464

# Code of this protoc line (protobuf 4.25) loads on every runtime in the range of
# pyproject.toml: newer lines write a version check into it that refuses older runtimes.
# It needs pkg_resources, which setuptools 80 began to take away.
GRPCIO_TOOLS := 1.62.3
PROTO_ENV := .proto-env/.grpcio-tools-$(GRPCIO_TOOLS)
PROTOS := $(sort $(wildcard protos/snakepit_bridge/*.proto))
SERVICES := $(shell grep -l '^service ' $(PROTOS))
GENERATED := snakepit_bridge/*_pb2.py snakepit_bridge/*_pb2.pyi snakepit_bridge/*_pb2_grpc.py

# Directories that hold Python: mypy takes no empty ones.
TYPED := $(foreach dir,snakepit_bridge tests benchmarks dashboards examples tools,\
           $(if $(shell find $(dir) -name '*.py' 2>/dev/null),$(dir)))

PIP := -m pip install --quiet --disable-pip-version-check

# $(call venv,PYTHON,DIRECTORY): makes it unless it is there, and hides it from git. A
# half-made one is removed.
define venv
	@test -x $(2)/bin/python || { \
	  $(1) -c 'import sys; v = "%d.%d" % sys.version_info[:2]; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, and $(1) is " + v + ": name another with PYTHON=...")' \
	  && echo "$(2): made with $$($(1) --version)" \
	  && { $(1) -m venv $(2) && echo '*' > $(2)/.gitignore || { rm -rf $(2); exit 1; }; } \
	; }
endef

# $(call generate,DIRECTORY): all generated code, as it lies in the repository's root.
generate = \
  .proto-env/bin/python -m grpc_tools.protoc -I protos \
    --python_out=$(1) --pyi_out=$(1) $(PROTOS) \
  && .proto-env/bin/python -m grpc_tools.protoc -I protos \
    --grpc_python_out=$(1) $(SERVICES)

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@sed -n 's/^#   /  /p' $(MAKEFILE_LIST)

# Metrics are not worth a refusal to serve: if their port is taken, any free one will do.
run: .venv/.stamp ## Serve on port 50050, and metrics on 9464
	@metrics=$(METRICS_PORT); \
	  case $$metrics in off|0) ;; *) \
	    .venv/bin/python -c 'import socket, sys; socket.create_server(("127.0.0.1", int(sys.argv[1]))).close()' $$metrics 2>/dev/null \
	    || { echo "make: port $$metrics for metrics is taken, so they are on a free one, which is named below: stop what listens there, or choose another with METRICS_PORT=N or off" >&2; metrics=0; } ;; \
	  esac; \
	  exec .venv/bin/snakepit-bridge serve --port 50050 --metrics-port $$metrics $(ARGS)

test: .venv/.stamp ## Run the test suite
	@.venv/bin/python -m pytest $(ARGS)

test-oldest: .venv-oldest/.stamp ## Run it on the oldest dependencies that pyproject.toml allows
	@cat .venv-oldest/constraints.txt
	@.venv-oldest/bin/python -m pytest $(ARGS)

lint: .venv/.stamp ## Check style (ruff) and types (mypy)
	@.venv/bin/ruff check
	@.venv/bin/ruff format --check
	@.venv/bin/mypy $(TYPED)

format: .venv/.stamp ## Format the code, and mend what ruff can mend
	@.venv/bin/ruff check --fix-only
	@.venv/bin/ruff format

proto: $(PROTO_ENV) ## Generate the protobuf code
	@out=$$(mktemp -d) && trap 'rm -rf "$$out"' EXIT && $(call generate,"$$out") \
	  && rm -f $(GENERATED) && cp "$$out"/snakepit_bridge/* snakepit_bridge/
	@ls $(GENERATED)

proto-check: $(PROTO_ENV) ## Fail if the generated code is not what protos/ says
	@out=$$(mktemp -d) && trap 'rm -rf "$$out"' EXIT && $(call generate,"$$out") \
	  && mkdir "$$out/committed" && { cp $(GENERATED) "$$out/committed" || true; } \
	  && mv "$$out/snakepit_bridge" "$$out/fresh" && cd "$$out" \
	  && { diff -ru committed fresh || { echo "Generated code has drifted: run make proto"; exit 1; }; }
	@echo "Generated code is what protos/ says"

dashboards: .venv/.stamp ## Write the dashboards for Grafana
	@.venv/bin/python -m dashboards.generate

bench: .venv/.stamp ## Run the benchmarks
	@.venv/bin/python -m benchmarks $(ARGS)

mutants: .venv/.stamp ## Break each guarantee on purpose, and see its test fail
	@.venv/bin/python -m tests.mutations $(ARGS)

clean: ## Remove environments, caches and builds
	rm -rf .venv .venv-oldest .proto-env .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.stamp: pyproject.toml
	$(call venv,$(PYTHON),.venv)
	@echo ".venv: installing snakepit-bridge and its development tools"
	@.venv/bin/python $(PIP) --editable ".[dev]"
	@touch $@

.venv-oldest/.stamp: pyproject.toml tools/oldest.py .venv/.stamp
	$(call venv,$(PYTHON),.venv-oldest)
	@echo ".venv-oldest: installing snakepit-bridge on its oldest dependencies"
	@.venv/bin/python tools/oldest.py pyproject.toml > .venv-oldest/constraints.txt
	@.venv-oldest/bin/python $(PIP) --editable ".[dev]" --constraint .venv-oldest/constraints.txt
	@touch $@

$(PROTO_ENV):
	@$(PROTO_PYTHON) -c 'import sys; v = "%d.%d" % sys.version_info[:2]; sys.exit(None if v in ("3.11", "3.12") else "grpcio-tools $(GRPCIO_TOOLS) is built for Python 3.11 and 3.12, and $(PROTO_PYTHON) is " + v + ": name one with PROTO_PYTHON=python3.12")'
	@rm -rf .proto-env
	$(call venv,$(PROTO_PYTHON),.proto-env)
	@echo ".proto-env: installing grpcio-tools $(GRPCIO_TOOLS)"
	@.proto-env/bin/python $(PIP) --only-binary :all: grpcio-tools==$(GRPCIO_TOOLS) "setuptools<80"
	@touch $@
