//! What a wrapper of an engine passes on as it is.

/// The methods of `Engine` beside `infer`, of a wrapper whose first field is its engine.
macro_rules! forwarded {
    () => {
        fn warmup(&mut self) -> Result<(), ::onelane::EngineError> {
            self.0.warmup()
        }

        fn delivered(&mut self) {
            self.0.delivered();
        }

        fn survives_panic(&self) -> bool {
            self.0.survives_panic()
        }

        fn idempotent(&self) -> bool {
            self.0.idempotent()
        }

        fn padded_cost(&self, batch: &[Self::Item]) -> usize {
            self.0.padded_cost(batch)
        }
    };
}

pub(crate) use forwarded;

#[cfg(test)]
mod tests {
    use onelane::{BatchItem, Engine, EngineError};

    struct Item;

    impl BatchItem for Item {
        type Key = ();

        fn key(&self) {}
    }

    /// Answers each question otherwise than an engine that says nothing.
    #[derive(Default)]
    struct Inner(Vec<&'static str>);

    impl Engine for Inner {
        type Item = Item;
        type Output = ();

        fn infer(&mut self, batch: &[Item]) -> Result<Vec<()>, EngineError> {
            Ok(vec![(); batch.len()])
        }

        fn warmup(&mut self) -> Result<(), EngineError> {
            self.0.push("warmup");
            Err(EngineError::failed("cold"))
        }

        fn delivered(&mut self) {
            self.0.push("delivered");
        }

        fn survives_panic(&self) -> bool {
            true
        }

        fn idempotent(&self) -> bool {
            false
        }

        fn padded_cost(&self, batch: &[Item]) -> usize {
            7 * batch.len()
        }
    }

    struct Wrapper(Inner);

    impl Engine for Wrapper {
        type Item = Item;
        type Output = ();

        fn infer(&mut self, batch: &[Item]) -> Result<Vec<()>, EngineError> {
            self.0.infer(batch)
        }

        super::forwarded!();
    }

    #[test]
    fn a_wrapper_says_what_its_engine_says() {
        let mut wrapper = Wrapper(Inner::default());
        assert_eq!(wrapper.warmup().unwrap_err().to_string(), "cold");
        wrapper.delivered();
        assert_eq!(wrapper.0.0, ["warmup", "delivered"]);
        assert!(wrapper.survives_panic());
        assert!(!wrapper.idempotent());
        assert_eq!(wrapper.padded_cost(&[Item, Item]), 14);
    }
}
