//! Real threads, a real queue and the simulated device. Everything on the device is simulated.

use std::sync::mpsc;
use std::time::Duration;

use crate::random::random;
use crate::within_time::within_time;
use onelane_sim::models::PackedProjection;
use onelane_sim::sync::SimLock;
use onelane_sim::{
    HostTensor, Op, OwnershipCheck, Profile, SimConfig, SimDevice, SimError, Tensor, Trace,
};

fn model(device: &SimDevice) -> PackedProjection {
    let upload = |shape: &[usize], seed| -> Tensor { device.upload(&random(shape, seed)).unwrap() };
    PackedProjection {
        projection: [upload(&[768, 256], 1), upload(&[768], 2)],
        heads: 4,
        contiguous: true,
        keep: false,
    }
}

/// Eight client threads, a real channel, one worker that owns the device.
fn through_one_worker() -> (Vec<HostTensor>, Trace) {
    type Request = (HostTensor, mpsc::Sender<HostTensor>);
    let device = SimDevice::new(SimConfig::new(Profile::fork_2_9_1()).traced(true));
    let (requests, received) = mpsc::channel::<Request>();
    let results = std::thread::scope(|scope| {
        let device = &device;
        let worker = scope.spawn(move || {
            device.own(OwnershipCheck::Assert).unwrap();
            let model = model(device);
            for (x, answer) in received {
                let x = device.upload(&x).unwrap();
                let y = model.forward(&x).unwrap();
                device.synchronise().unwrap();
                answer.send(y.download().unwrap()).unwrap();
            }
        });
        let clients: Vec<_> = (0..8)
            .map(|client| {
                let requests = requests.clone();
                scope.spawn(move || {
                    let (answer, received) = mpsc::channel();
                    let x = random(&[4, 128, 256], 100 + client);
                    requests.send((x, answer)).unwrap();
                    received.recv().unwrap()
                })
            })
            .collect();
        drop(requests);
        let results = clients.into_iter().map(|client| client.join().unwrap()).collect();
        // A join, unlike the end of the scope, also waits for what a thread does last: to leave the device.
        worker.join().unwrap();
        results
    });
    (results, device.trace())
}

#[test]
fn one_worker_behind_a_real_queue_is_right_and_deterministic() {
    within_time(|| {
        let device = SimDevice::new(SimConfig::new(Profile::upstream_2_15()));
        let model = model(&device);
        let expected: Vec<HostTensor> = (0..8)
            .map(|client| {
                let x = device.upload(&random(&[4, 128, 256], 100 + client)).unwrap();
                model.forward(&x).unwrap().download().unwrap()
            })
            .collect();
        let (results, trace) = through_one_worker();
        assert_eq!(results, expected);
        // Whichever client came first: what the device did is the same.
        let (results, again) = through_one_worker();
        assert_eq!(results, expected);
        assert!(trace == again, "the traces of two runs differ");
    });
}

#[test]
fn a_thread_outside_of_the_device_is_not_waited_for() {
    within_time(|| {
        let device = SimDevice::new(SimConfig::new(Profile::fork_2_9_1()));
        let (go, gone) = mpsc::channel();
        std::thread::scope(|scope| {
            let device = &device;
            scope.spawn(move || {
                let attached = device.attach("waits").unwrap();
                device.alloc(4).unwrap();
                // Blocks on something real until the other thread has used the device.
                attached.outside(|| gone.recv().unwrap()).unwrap();
                device.alloc(4).unwrap();
            });
            scope.spawn(move || {
                let _attached = device.attach("works").unwrap();
                device.alloc(4).unwrap();
                go.send(()).unwrap();
            });
        });
        assert_eq!(device.stats().allocations, 3);
    });
}

#[test]
fn waiting_for_a_thread_that_stays_outside_is_a_hang_in_the_end() {
    within_time(|| {
        let config = SimConfig::new(Profile::fork_2_9_1()).hang_after(Duration::from_millis(50));
        let device = SimDevice::new(config);
        let lock = SimLock::new(&device, "model");
        let (inside, is_inside) = mpsc::channel();
        let (finish, finished) = mpsc::channel::<()>();
        let ended = std::thread::scope(|scope| {
            let (device, lock) = (&device, &lock);
            scope.spawn(move || {
                let attached = device.attach("holds").unwrap();
                // Goes outside with the lock, and comes back only when the other has given up.
                let _ = lock.with(|| {
                    attached.outside(|| {
                        inside.send(()).unwrap();
                        finished.recv().unwrap();
                    })
                });
            });
            let waits = scope.spawn(move || {
                is_inside.recv().unwrap();
                let ended = lock.with(|| ());
                finish.send(()).unwrap();
                ended
            });
            waits.join().unwrap()
        });
        let Err(SimError::Hang(hang)) = ended else {
            panic!("{ended:?}");
        };
        assert!(hang.waiting[0].waits_for.contains("`holds`"), "{hang}");
    });
}

#[test]
fn a_panic_in_a_kernel_reaches_its_caller_and_the_others_go_on() {
    within_time(|| {
        let device = SimDevice::new(SimConfig::new(Profile::fork_2_9_1()));
        let panics = std::thread::scope(|scope| {
            let device = &device;
            let thread = scope.spawn(move || {
                let x = device.alloc(4).unwrap();
                device
                    .encode(Op::kernel("bad"), &[], &[&x], |_, _| panic!("in the kernel"))
                    .unwrap();
                device.commit().unwrap();
            });
            thread.join().unwrap_err()
        });
        assert_eq!(panics.downcast_ref::<&str>(), Some(&"in the kernel"));
        // Its stream's queue died with it; another thread has its own.
        let x = device.alloc(4).unwrap();
        device.write(&x, &[5; 4]).unwrap();
        assert_eq!(device.read(&x).unwrap(), [5; 4]);
    });
}

/// The registration of a thread is made after the thread-local, so it is gone before what that holds.
#[test]
fn a_tensor_may_be_dropped_in_the_last_moments_of_a_thread() {
    thread_local! {
        static KEPT: std::cell::RefCell<Option<Tensor>> = const { std::cell::RefCell::new(None) };
    }
    within_time(|| {
        let device = SimDevice::new(SimConfig::new(Profile::fork_2_9_1()));
        for _ in 0..2 {
            let device = device.clone();
            let keeps = move || {
                KEPT.set(None);
                KEPT.set(Some(device.upload(&random(&[4, 4], 1)).unwrap()));
            };
            std::thread::spawn(keeps).join().unwrap();
        }
        assert_eq!(device.upload(&random(&[2], 2)).unwrap().download().unwrap(), random(&[2], 2));
        assert_eq!(device.stats().used_bytes, 0);
    });
}

#[test]
fn the_owner_check_finds_the_thread_behind_the_queue() {
    within_time(|| {
        let device = SimDevice::new(SimConfig::new(Profile::upstream_2_15()));
        std::thread::scope(|scope| {
            let device = &device;
            scope.spawn(move || device.own(OwnershipCheck::Assert).unwrap());
        });
        let error = std::thread::scope(|scope| {
            let device = &device;
            let intruder = std::thread::Builder::new().name("handler-3".to_owned());
            let thread = intruder.spawn_scoped(scope, move || device.synchronise());
            thread.unwrap().join().unwrap().unwrap_err()
        });
        assert!(matches!(&error, SimError::Affinity(v) if v.thread == "handler-3"), "{error}");
    });
}
