# The steps of CI and the daily ones. `just` lists them. Each runs without just, too: the commands are below.

[private]
default:
    @just --list --unsorted

# Everything CI does
ci:
    .ci/run

# The daemon, quickly: target/debug/carrick
build:
    cargo build --locked

# All tests, or those that `cargo test` arguments choose: just test -p carrick-tests --test journey
test *args:
    tests/run {{ args }}

# Formatting and clippy, as strict as CI
lint:
    .ci/run fmt clippy

# Documentation of the code: target/doc/carrick/index.html
doc:
    .ci/run doc

# Licences, sources and duplicates of dependencies
deny:
    .ci/run deny

# That cores do no IO and shells do not know each other
layering:
    .ci/run layering

# Formats the code
fmt:
    cargo fmt --all

# Two domains on this machine, without root
demo *args:
    cargo run --locked -- demo {{ args }}

# A release build against a direct connection and a haproxy pair (root): just bench --rounds 3 --json bench.json
bench *args:
    cargo build --locked --release --package carrick --package carrick-tests --bins
    CARRICK_BIN=target/release/carrick target/release/carrick-bench {{ args }}

# Feeds a parser what nobody would write, with a nightly compiler; installs cargo-fuzz where it is missing. The targets run
# for a moment on stable, too: just test -p carrick-tests --test fuzz
fuzz target="flow_header" seconds="60":
    cargo fuzz --version >/dev/null 2>&1 || cargo install --locked cargo-fuzz
    cargo +nightly fuzz run --fuzz-dir tests/fuzz {{ target }} -- -max_total_time={{ seconds }}
