//! A loaded model of texts as those see it who do not know its engine.

use futures_util::future::BoxFuture;
use onelane::Engine;

use crate::call::Call;
use crate::failure::Failure;
use crate::inputs::Inputs;
use crate::self_check;
use crate::text_lane::TextLane;
use crate::work::{Answers, Queue, Work};

impl<E: Engine> Work for TextLane<E> {
    fn queue(&self) -> &dyn Queue {
        &self.lane
    }

    fn run(
        &self,
        inputs: Inputs,
        call: Call,
        truncate: bool,
    ) -> BoxFuture<'_, Result<Answers, Failure>> {
        Box::pin(self.run_call(inputs, call, truncate))
    }

    fn self_check(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(self_check::run(self))
    }
}
