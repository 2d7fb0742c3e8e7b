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
