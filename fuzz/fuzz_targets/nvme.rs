#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| vfiod_fuzz_targets::NVME.run(input));
