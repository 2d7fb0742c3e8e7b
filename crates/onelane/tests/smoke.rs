//! Smoke.
use onelane::testing::*;
use onelane::*;
use std::time::Duration;
#[test]
fn smoke() {
    within_a_minute(|| {
        let d = DeviceExecutor::new(ExecutorConfig::new("test")).unwrap();
        let q = BatchQueue::new(&d, BatchConfig::default().capacity(4), || {
            Ok(FakeEngine::echo())
        })
        .unwrap();
        std::thread::scope(|s| {
            for t in 0..8u64 {
                let q = q.clone();
                s.spawn(move || {
                    for i in 0..1000 {
                        assert_eq!(
                            q.submit(FakeItem::new(t * 1000 + i).key(i % 3))
                                .unwrap()
                                .wait()
                                .unwrap(),
                            t * 1000 + i
                        );
                    }
                });
            }
        });
        println!("{:?}", q.stats());
        q.shutdown(Shutdown::Drain, Duration::from_secs(5)).unwrap();
        assert_eq!(d.call(|| 3).unwrap(), 3);
        d.shutdown(Shutdown::Drain, Duration::from_secs(5)).unwrap();
        assert!(matches!(
            q.submit(FakeItem::new(1)),
            Err(SubmitError::Closed(_))
        ));
    });
}
