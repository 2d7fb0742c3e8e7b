//! Whatever is parsed or validated takes any input: it says yes or names what is wrong, and never
//! panics.

use std::time::{Duration, Instant};

use onelane::{BatchConfig, ExecutorConfig, Priority, Request};
use proptest::prelude::*;

proptest! {
    #[test]
    fn a_priority_is_one_of_three_words(text in "\\PC*") {
        let known = ["interactive", "normal", "bulk"].iter().position(|n| text.eq_ignore_ascii_case(n));
        match text.parse::<Priority>() {
            Ok(priority) => prop_assert_eq!(Some(priority), known.map(|at| Priority::ALL[at])),
            Err(error) => {
                prop_assert_eq!(known, None);
                prop_assert!(error.to_string().contains("interactive, normal or bulk"));
            }
        }
    }

    #[test]
    fn a_priority_reads_what_it_writes(at in 0..3_usize, upper in any::<bool>()) {
        let priority = Priority::ALL[at];
        let text = priority.to_string();
        let text = if upper { text.to_uppercase() } else { text };
        prop_assert_eq!(text.parse::<Priority>(), Ok(priority));
    }

    #[test]
    fn settings_are_accepted_exactly_when_nothing_is_zero(
        sizes in prop::array::uniform4(prop_oneof![Just(0_usize), Just(usize::MAX), any::<usize>()]),
        weight in prop_oneof![Just(0_u32), any::<u32>()],
        ageing in prop_oneof![Just(Duration::ZERO), Just(Duration::MAX), any::<Duration>()],
        stall_after in prop_oneof![Just(Duration::ZERO), any::<Duration>()],
        max_wait in any::<Duration>(),
        name in "\\PC*",
    ) {
        let config = BatchConfig::default()
            .max_batch_size(sizes[0])
            .max_batch_cost(sizes[1])
            .capacity(sizes[2])
            .capacity_cost(sizes[3])
            .weight(weight)
            .ageing(ageing)
            .stall_after(stall_after)
            .max_wait(max_wait)
            .name(name);
        let zero = sizes.contains(&0) || weight == 0 || ageing.is_zero() || stall_after.is_zero();
        match config.validate() {
            Ok(()) => prop_assert!(!zero),
            Err(error) => {
                prop_assert!(zero);
                prop_assert!(error.to_string().contains(" = 0"), "{}", error);
            }
        }
    }

    #[test]
    fn a_device_name_is_anything_but_empty(name in any::<String>(), workers in any::<usize>()) {
        let good = !name.is_empty() && !name.contains('\0') && (1..=64).contains(&workers);
        let config = ExecutorConfig::new(name).workers(workers);
        prop_assert_eq!(config.validate().is_ok(), good);
    }

    #[test]
    fn a_request_gives_its_input_back(input in any::<u64>(), after in any::<Duration>()) {
        let request = Request::new(input).deadline_after(after).deadline(Instant::now());
        prop_assert_eq!(request.into_input(), input);
    }
}
