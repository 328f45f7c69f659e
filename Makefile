# Two commands do all set-up: `make demo` shows the main job, `make test` installs what the tests need and runs them.
.PHONY: demo test test-all silver lint fmt

# Tests that talk to a server, and the version that `make test` runs some of them on besides the installed one: those whose outcome
# depends most on the server. `make test-all` runs all of them on all versions.
SERVER_TESTS = connection $(patsubst tests/%.rs,%,$(shell grep -l private_server tests/*.rs))
SECOND = 18
SECOND_TESTS = catalogue check_source connection identity replicate types values
HUELLA = $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)/debug/huella
on = HUELLA_PG_BIN=$(CURDIR)/.stack/pg$(1)/native/bin cargo test --no-fail-fast

demo:
	deploy/demo/demo.sh

test:
	tests/setup.sh $(SECOND)
	tests/silver/setup.sh
	cargo test --no-fail-fast
	tests/silver/run.sh --huella $(HUELLA)
	$(call on,$(SECOND)) $(addprefix --test ,$(SECOND_TESTS))

# All versions of PostgreSQL that are promised; slow.
test-all:
	tests/setup.sh 14 15 16 17 18
	cargo test --no-fail-fast
	for version in 14 15 16 17 18; do $(call on,$$version) $(addprefix --test ,$(SERVER_TESTS)) || exit 1; done

# The proof of the Dataform project alone, really run on a BigQuery emulator over data that huella wrote; and with faults put into the project,
# which it must notice.
silver:
	tests/setup.sh
	cargo build
	tests/silver/run.sh --huella $(HUELLA) --mutants

lint:
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings

fmt:
	cargo fmt
