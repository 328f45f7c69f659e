# Two commands do all set-up: `make demo` shows the main job, `make test` installs what the tests need and runs them.
.PHONY: demo test lint fmt

demo:
	deploy/demo/demo.sh

test:
	tests/setup.sh
	cargo test --no-fail-fast

lint:
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings

fmt:
	cargo fmt
