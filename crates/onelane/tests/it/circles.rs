//! Promise 9: workers of several executors that wait for each other are told, and never hang.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use onelane::testing::{FakeEngine, FakeItem, Gate, VirtualClock, within_a_minute};
use onelane::{
    BatchConfig, BatchQueue, BuildError, DeviceExecutor, EngineError, ExecutorConfig, Health,
    Refusal, RequestError,
};

use crate::common::*;

type Later = Arc<OnceLock<BatchQueue<FakeEngine>>>;

/// A way to wait for a handle.
type Wait = fn(onelane::ResponseHandle<u64>) -> Result<u64, RequestError>;

/// A queue whose engine asks `inner` for each of its items and adds one; `how` it waits.
fn asking(device: &DeviceExecutor, inner: &Later, how: Wait) -> BatchQueue<FakeEngine> {
    let inner = Arc::clone(inner);
    BatchQueue::new(device, BatchConfig::default(), move || {
        let inner = Arc::clone(&inner);
        Ok(FakeEngine::new(move |batch| {
            let inner = inner.get().expect("set before the first request");
            let ask = |item: &FakeItem| {
                let handle = inner.submit(*item).map_err(|e| EngineError::failed(e.to_string()))?;
                Ok(how(handle).map_err(EngineError::failed)? + 1)
            };
            batch.iter().map(ask).collect()
        }))
    })
    .unwrap()
}

const WAYS: [Wait; 3] = [
    |handle| handle.wait(),
    |handle| handle.wait_timeout(Duration::from_secs(3600)).unwrap(),
    |handle| block_on(handle),
];

#[test]
fn a_circle_over_executors_is_told_and_a_path_is_not() {
    for how in WAYS {
        within_a_minute(move || {
            let devices = [(); 3].map(|()| executor());
            let later: [Later; 3] = Default::default();
            let echo =
                BatchQueue::new(&devices[2], BatchConfig::default(), || Ok(FakeEngine::echo()));
            // 0 -> 1 -> 2, which answers.
            assert!(later[1].set(asking(&devices[1], &later[2], how)).is_ok());
            assert!(later[2].set(echo.unwrap()).is_ok());
            let path = asking(&devices[0], &later[1], how);
            assert_eq!(path.submit(FakeItem::new(1)).unwrap().wait().unwrap(), 3);
            // 0 -> 1 -> 2 -> 0.
            let later: [Later; 3] = Default::default();
            for at in 0..3 {
                let queue = asking(&devices[at], &later[(at + 1) % 3], how);
                assert!(later[at].set(queue).is_ok());
            }
            let error = later[0].get().unwrap().submit(FakeItem::new(1)).unwrap().wait();
            let text = error.unwrap_err().to_string();
            assert!(text.contains("deadlock"), "{text}");
            // Nothing is left of it, once those who waited have been told, too.
            for device in &devices {
                assert_eq!(device.call(|| 1).unwrap(), 1);
            }
            soon("nobody waits", || {
                later.iter().all(|queue| queue.get().unwrap().stats().running == 0)
            });
            assert_eq!(path.submit(FakeItem::new(1)).unwrap().wait().unwrap(), 3);
        });
    }
}

#[test]
fn a_closure_that_waits_for_who_waits_for_it_is_told() {
    within_a_minute(|| {
        let [here, there] = [executor(), executor()];
        let (back, away) = (here.clone(), there.clone());
        // Who closes the circle is told: whoever waits last.
        let answer = here.call(move || away.call(move || back.call(|| 7)));
        let answer = answer.unwrap().and_then(|inner| inner);
        assert!(matches!(answer, Err(RequestError::WouldDeadlock)), "{answer:?}");
        // The same way again, and one that is no circle.
        let away = there.clone();
        assert_eq!(here.call(move || away.call(|| 7)).unwrap().unwrap(), 7);
    });
}

/// Room that only a worker could make which waits for the one who asks.
#[test]
fn who_asks_for_room_in_a_circle_is_refused() {
    within_a_minute(|| {
        let [here, there] = [executor(), executor()];
        let config = BatchConfig::default().capacity(1);
        let queue = BatchQueue::new(&here, config, || Ok(FakeEngine::echo())).unwrap();
        let (asked, full, away) = (queue.clone(), queue.clone(), there.clone());
        let refused = here
            .call(move || {
                let _kept = full.submit(FakeItem::new(1)).unwrap();
                away.call(move || asked.submit(FakeItem::new(2)).map(drop))
            })
            .unwrap();
        // Who closes the circle is told: whoever waits last.
        match &refused {
            Ok(refused) => assert!(is_refused(refused, &Refusal::WouldDeadlock), "{refused:?}"),
            Err(error) => assert!(matches!(error, RequestError::WouldDeadlock), "{error}"),
        }
        assert_eq!(there.call(|| 1).unwrap(), 1);
        assert_eq!(queue.submit(FakeItem::new(3)).unwrap().wait().unwrap(), 3);
    });
}

#[test]
fn a_queue_that_is_made_in_a_circle_is_refused() {
    within_a_minute(|| {
        let [here, there] = [executor(), executor()];
        let (back, away) = (here.clone(), there.clone());
        let made = here.call(move || {
            let make = move || {
                BatchQueue::new(&back, BatchConfig::default(), || Ok(FakeEngine::echo())).map(drop)
            };
            away.call(make)
        });
        let told = matches!(
            made.unwrap(),
            Ok(Err(BuildError::WouldDeadlock(_))) | Err(RequestError::WouldDeadlock)
        );
        assert!(told);
        assert_eq!(here.call(|| 1).unwrap() + there.call(|| 1).unwrap(), 2);
    });
}

/// Promise 10: a batch that waits for another device says so when it stalls.
#[test]
fn health_says_which_device_a_batch_waits_for() {
    within_a_minute(|| {
        let clock = VirtualClock::new();
        let here = executor_on(&clock);
        let there = DeviceExecutor::new(ExecutorConfig::new("elsewhere")).unwrap();
        let limit = Duration::from_secs(30);
        let (gate, held, away) = (Gate::new(), Gate::new(), there.clone());
        let (passing, arrived) = (held.clone(), gate.clone());
        let queue = BatchQueue::new(&here, BatchConfig::default().stall_after(limit), move || {
            let (passing, arrived, away) = (passing.clone(), arrived.clone(), away.clone());
            Ok(FakeEngine::new(move |batch| {
                let (passing, arrived) = (passing.clone(), arrived.clone());
                let waited = away.call(move || {
                    arrived.pass();
                    passing.pass();
                });
                waited.map_err(EngineError::failed)?;
                Ok(vec![0; batch.len()])
            }))
        })
        .unwrap();
        gate.open_for_good();
        let handle = queue.submit(FakeItem::new(1)).unwrap();
        gate.wait_for_arrivals(1);
        clock.advance(limit);
        let waits = || {
            let waits_for = Some("elsewhere".to_owned());
            queue.health() == Health::Stalled { running_for: limit, waits_for }
        };
        soon("it waits", waits);
        held.open_for_good();
        handle.wait().unwrap();
        assert_eq!(queue.health(), Health::Ready);
    });
}
