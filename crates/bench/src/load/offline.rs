//! Offline: whole batches made before, on one thread; what an engine can do at most.

use std::time::Instant;

use onelane::{BatchItem, Engine};
use onelane_bench::generator::Limit;

use super::observed::Observed;
use super::run::Run;
use super::stage::Stage;
use super::strategy::Strategy;
use super::workload::Workload;

/// Runs whole batches of `size` on one thread: as often as it takes, over all requests, sorted by
/// length, so that every pass is the same work. Latencies are those of batches.
///
/// # Errors
/// The engine's.
pub fn offline<W: Workload>(
    stage: &Stage<W>,
    engine: &mut Observed<W::Engine>,
    size: usize,
    limit: Limit,
) -> anyhow::Result<Run> {
    let batches = sorted_batches(stage.workload.items(), size);
    let before = stage.counts(Strategy::Offline);
    let mut run = Run::default();
    let started = Instant::now();
    loop {
        for batch in &batches {
            let begun = Instant::now();
            std::hint::black_box(engine.infer(batch)?);
            run.seen.latencies.record(begun, Instant::now());
            run.seen.answered += batch.len() as u64;
        }
        run.took = started.elapsed();
        let over = match limit {
            Limit::Time(time) => run.took >= time,
            Limit::Requests(count) => run.seen.answered >= count,
        };
        if over {
            break;
        }
    }
    run.counts = stage.counts(Strategy::Offline).since(before);
    Ok(run)
}

/// Batches of requests that may share one, of similar cost, as few and as full as can be.
pub fn sorted_batches<I: BatchItem + Clone>(items: &[I], size: usize) -> Vec<Vec<I>> {
    // A batch may be larger than the set of requests.
    let count = items.len().next_multiple_of(size);
    let mut items: Vec<I> = items.iter().cycle().take(count).cloned().collect();
    items.sort_by_key(BatchItem::cost);
    let mut groups: Vec<(I::Key, Vec<I>)> = Vec::new();
    for item in items {
        let key = item.key();
        match groups.iter_mut().find(|(other, _)| *other == key) {
            Some((_, group)) => group.push(item),
            None => groups.push((key, vec![item])),
        }
    }
    groups.iter().flat_map(|(_, group)| group.chunks(size)).map(<[I]>::to_vec).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use onelane::ExecutorConfig;

    use super::*;
    use crate::load::workload::Null;

    #[derive(Clone, Debug, PartialEq)]
    struct Text(usize);

    impl BatchItem for Text {
        type Key = usize;
        fn key(&self) -> usize {
            self.0 / 10
        }
        fn cost(&self) -> usize {
            self.0
        }
    }

    #[test]
    fn offline_batches_are_sorted_full_and_of_one_key() {
        let texts: Vec<_> = [31, 5, 33, 1, 9, 35, 2].map(Text).to_vec();
        let batches = sorted_batches(&texts, 3);
        let of_two_rounds: usize = batches.iter().map(Vec::len).sum();
        assert_eq!(of_two_rounds % 3, 0, "as many requests as fill batches");
        for batch in &batches {
            assert!(batch.iter().all(|text| text.key() == batch[0].key()));
            assert!(batch.is_sorted_by_key(BatchItem::cost), "{batch:?}");
        }
        // Fewer requests than a batch holds are taken more than once.
        let batches = sorted_batches(&texts[..1], 8);
        assert_eq!(batches, [vec![Text(31); 8]]);
    }

    #[test]
    fn counts_add_up() {
        let executor = ExecutorConfig::new("offline-test");
        let stage = Stage::new(Null::new(Duration::ZERO), executor, 16, 1024).unwrap();
        let mut engine = stage.engine(Strategy::Offline).unwrap();
        let run = offline(&stage, &mut engine, 16, Limit::Requests(500)).unwrap();
        assert_eq!((run.seen.answered, run.counts.items, run.counts.batches), (512, 512, 32));
        assert_eq!(run.seen.latencies.count(), 32, "they are those of batches");
    }
}
