# Daily commands. `just --list` shows them; each is what one would type by hand.

# Show the commands
default:
    @just --list

# Compile everything, without tests
check:
    cargo check --all-targets

# Format and lint, as CI does
lint:
    cargo fmt --check
    cargo clippy --all-targets --all-features -- -D warnings
    RUSTDOCFLAGS=-Dwarnings cargo doc --no-deps --all-features

# Run the quick half of the tests, or those of the given arguments: `just test --test it reloading::mio::`
test *args:
    cargo test {{args}}

# Run all tests, with many random cases, as CI does
test-all *args:
    PROPTEST_CASES=256 cargo test {{args}} -- --include-ignored

# Run one behaviour of one class: `just behaviour reloading mio`
behaviour name class:
    cargo test --test it {{name}}::{{class}}:: -- --include-ignored

# Run every behaviour of one class: `just class mio`
class name:
    cargo test --test it {{name}}:: -- --include-ignored

# Run the master with an app: `just run --worker-class mio demo`
run *args:
    cargo run --release -- {{args}}

# Check the pages: links, file names, settings, tours
pages:
    cargo test --test guide -- --include-ignored

# Build the guide as a book (needs mdbook) in target/book
guide:
    mdbook build docs

# Write docs/src/settings.md from the table of options
docs-settings:
    OSTLER_WRITE_DOCS=1 cargo test --lib settings

# Test the master's page in Chromium (needs node)
page:
    npm ci --prefix tests/browser --no-audit --no-fund
    cargo test --test page -- --include-ignored --nocapture

# Make the pictures of the master's page in docs/src/images/ (needs node and Chromium)
pictures:
    npm ci --prefix tests/browser --no-audit --no-fund
    cargo build
    npm run --prefix tests/browser pictures

# Draw the dashboard of config/grafana/ in docs/src/images/ (needs node, Chromium and Prometheus)
dashboard:
    npm ci --prefix tests/browser --no-audit --no-fund
    cargo build
    npm run --prefix tests/browser dashboard

# Draw docs/src/images/top.svg, the picture of `ostlerctl top`
docs-top:
    OSTLER_WRITE_DOCS=1 cargo test --bin ostlerctl picture

# Repeat the property tests with many more random cases: `just fuzz 100000`
fuzz cases="20000":
    PROPTEST_CASES={{cases}} cargo test --lib

# Run the micro-benchmarks, or one: `just bench --bench session`
bench *args:
    cargo bench {{args}}

# Compare with nginx, gunicorn and a bare epoll loop (needs wrk): `just compare --only mio`
compare *args:
    cargo build --release
    benches/compare.py {{args}}

# Measure how soon killed and hung workers are replaced
liveness *args:
    cargo build --release
    benches/liveness.py {{args}}

# Reload, upgrade and recycle under load for minutes; fails if a request is lost
endurance *args:
    cargo build --release
    benches/endurance.py {{args}}

# Run everything that must hold before a change is merged
ci:
    .ci/run
