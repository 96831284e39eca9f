#![no_main]

libfuzzer_sys::fuzz_target!(
    init: {
        if vfiod_fuzz_targets::was_a_stranger() {
            std::process::exit(0);
        }
    },
    |input: &[u8]| vfiod_fuzz_targets::CONTROL.run(input)
);
