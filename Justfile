# A convenience: nothing needs `just` to be installed. Each recipe is one command that can be typed as well.

# What there is
default:
    @just --list

# The guided first run on the bundled sample
tour:
    images/tour

# All tests
test *PARTS:
    tests/run {{PARTS}}

# Fuzz a target, led by coverage, for some minutes (wants nightly and cargo-fuzz)
fuzz TARGET MINUTES="30":
    mkdir -p tests/fuzz/corpus/{{TARGET}}
    for seed in tests/fuzz/seeds/{{trim_end_match(TARGET, "-write")}}/*.zst; do zstd -qdf "$seed" -o "tests/fuzz/corpus/{{TARGET}}/$(basename "$seed" .zst)"; done
    cargo +nightly fuzz run --fuzz-dir tests/fuzz {{TARGET}} -- -max_total_time=$(({{MINUTES}} * 60)) -max_len=4194304

# Fuzz a target by mutation, on the stable compiler
mutate TARGET MINUTES="30":
    cargo run --release -p veduta-tests --bin mutate -- {{TARGET}} --seconds $(({{MINUTES}} * 60))

# The manual pages, into target/man
man:
    cargo run --release -p veduta -- man --out target/man

# All test images, into images/out
images:
    images/make

# The benchmark of the README's table (see benches/README.md)
bench *ARGS:
    benches/run {{ARGS}}
