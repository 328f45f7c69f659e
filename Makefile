# Two commands do all set-up: `make demo` shows the main job, `make test` installs what the tests need and runs them.
.PHONY: demo test test-all lint fmt

# Tests that talk to a server, and the version that `make test` runs them on besides the installed one.
SERVER_TESTS = connection $(patsubst tests/%.rs,%,$(shell grep -l private_server tests/*.rs))
SECOND = 18
on = HUELLA_PG_BIN=$(CURDIR)/.stack/pg$(1)/native/bin cargo test --no-fail-fast

demo:
	deploy/demo/demo.sh

test:
	tests/setup.sh $(SECOND)
	cargo test --no-fail-fast
	$(call on,$(SECOND)) $(addprefix --test ,$(SERVER_TESTS))

# All versions of PostgreSQL that are promised; slow.
test-all:
	tests/setup.sh 14 15 16 17 18
	cargo test --no-fail-fast
	for version in 14 15 16 17 18; do $(call on,$$version) $(addprefix --test ,$(SERVER_TESTS)) || exit 1; done

lint:
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings

fmt:
	cargo fmt
