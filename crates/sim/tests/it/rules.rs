//! One test per rule of the simulated device. Everything here is simulated.

use crate::within_time::within_time;
use onelane_sim::scenario::{Crash, CrashTrial};
use onelane_sim::{
    ActionKind, Fault, Op, OwnershipCheck, Profile, Reuse, Schedule, SimConfig, SimDevice,
    SimError, StreamPolicy, Turn,
};

fn device(profile: Profile) -> SimDevice {
    SimDevice::new(SimConfig::new(profile).traced(true))
}

/// `out = in`, pending.
fn copy(device: &SimDevice, from: &onelane_sim::Buffer, to: &onelane_sim::Buffer) {
    device
        .encode(Op::kernel("copy"), &[from], &[to], |reads, writes| {
            writes[0].copy_from_slice(reads[0]);
        })
        .unwrap();
}

fn kinds(device: &SimDevice) -> Vec<ActionKind> {
    let trace = device.trace();
    trace.events().iter().map(|event| event.kind).collect()
}

#[test]
fn r1_arithmetic_runs_at_commit_on_the_bytes_of_that_time() {
    within_time(|| {
        let device = device(Profile::fork_2_9_1());
        device
            .run(|_| {
                let (from, to) = (device.alloc(4).unwrap(), device.alloc(4).unwrap());
                device.write(&from, &[1; 4]).unwrap();
                copy(&device, &from, &to);
                assert_eq!(kinds(&device).last(), Some(&ActionKind::Encode));
                device.commit().unwrap();
                assert_eq!(kinds(&device).last(), Some(&ActionKind::Execute));
                // What is written after the encoding and before the commit is what the command reads.
                device
                    .encode(Op::kernel("fill"), &[], &[&from], |_, writes| writes[0].fill(7))
                    .unwrap();
                copy(&device, &from, &to);
                device
                    .encode(Op::kernel("fill"), &[], &[&from], |_, writes| writes[0].fill(9))
                    .unwrap();
                assert_eq!(device.read(&to).unwrap(), [7; 4]);
                assert_eq!(device.read(&from).unwrap(), [9; 4]);
            })
            .unwrap();
    });
}

#[test]
fn r2_kernels_stay_pending_and_graphs_commit_what_is_before_them() {
    within_time(|| {
        let device = device(Profile::fork_2_9_1());
        device
            .run(|_| {
                let (a, b) = (device.alloc(4).unwrap(), device.alloc(4).unwrap());
                device.write(&a, &[3; 4]).unwrap();
                let commits = device.stats().commits;
                copy(&device, &a, &b);
                assert_eq!(device.stats().commits, commits);
                let double = |reads: &[&[u8]], writes: &mut [&mut [u8]]| {
                    for (to, from) in writes[0].iter_mut().zip(reads[0]) {
                        *to = from * 2;
                    }
                };
                device.encode(Op::graph("double").shapes("4"), &[&b], &[&a], double).unwrap();
                assert_eq!(device.stats().commits, commits + 1);
                assert_eq!(device.read(&a).unwrap(), [6; 4]);
            })
            .unwrap();
    });
}

/// T1 frees a block whose reader is pending; T2 gets a block of that size and writes to it.
fn freed_while_pending(profile: Profile) -> (Vec<u8>, u64) {
    let script = vec![
        Turn::stopped("main"),
        Turn::done("T1", ActionKind::Free, 1),
        Turn::stopped("T2"),
        Turn::stopped("T1"),
    ];
    let config = SimConfig::new(profile).schedule(Schedule::Script(script));
    let device = SimDevice::new(config);
    const BYTES: usize = 2 << 20;
    let copied = device
        .run(|main| {
            main.scope(|scope| {
                let device = &device;
                let first = scope.spawn("T1", move |_| {
                    let source = device.alloc(BYTES).unwrap();
                    device.write(&source, &vec![1; BYTES]).unwrap();
                    let target = device.alloc(BYTES).unwrap();
                    copy(device, &source, &target);
                    drop(source);
                    device.read(&target).unwrap()[..2].to_vec()
                });
                scope.spawn("T2", move |_| {
                    let other = device.alloc(BYTES).unwrap();
                    device.write(&other, &vec![2; BYTES]).unwrap();
                });
                first.join().unwrap()
            })
        })
        .unwrap();
    (copied, device.stats().stale_reads)
}

#[test]
fn r3_a_freed_block_goes_to_another_stream_under_shared_reuse_only() {
    within_time(|| {
        let fork = Profile::fork_2_9_1;
        assert_eq!(freed_while_pending(fork()), (vec![2, 2], 1));
        for safe in [
            fork().with_reuse(Reuse::PerStream),
            fork().with_reuse(Reuse::Retain),
            fork().with_streams(StreamPolicy::Shared),
            Profile::user_streams_2_15(),
            Profile::upstream_2_15(),
        ] {
            assert_eq!(freed_while_pending(safe.clone()), (vec![1, 1], 0), "{safe:?}");
        }
    });
}

#[test]
fn r3_small_blocks_stay_with_their_thread_until_it_ends() {
    within_time(|| {
        let device = device(Profile::fork_2_9_1());
        device
            .run(|main| {
                let block = main.scope(|scope| {
                    let device = &device;
                    let thread = scope.spawn("T1", move |main| {
                        let buffer = device.alloc(4096).unwrap();
                        let block = buffer.block();
                        drop(buffer);
                        main.scope(|scope| {
                            let other =
                                scope.spawn("T2", move |_| device.alloc(4096).unwrap().block());
                            assert_ne!(other.join().unwrap(), block);
                        });
                        assert_eq!(device.alloc(4096).unwrap().block(), block);
                        block
                    });
                    thread.join().unwrap()
                });
                // T2 ended first, so its block is in the pool, too; both come from there now.
                let buffers = [device.alloc(4096).unwrap(), device.alloc(4096).unwrap()];
                assert!(buffers.iter().any(|buffer| buffer.block() == block));
            })
            .unwrap();
    });
}

#[test]
fn r4_operations_off_the_queue_abort_with_apples_text() {
    within_time(|| {
        let mut faults = Vec::new();
        for seed in 0..40 {
            for crash in [Crash::Arange, Crash::Synchronise] {
                let trial = CrashTrial::new(Profile::upstream_2_14()).seed(seed);
                if let Err(SimError::Aborted(abort)) = trial.run(crash) {
                    faults.push(abort.fault);
                }
            }
        }
        for text in [
            "A command encoder is already encoding to this command buffer",
            "commit an already committed command buffer",
            "_status < MTLCommandBufferStatusCommitted",
        ] {
            assert!(faults.iter().any(|f| f.text() == text), "no {text:?} in {faults:?}");
        }
    });
}

#[test]
fn r4_a_handler_can_come_after_the_commit_of_another_thread() {
    within_time(|| {
        let mut handler_late = 0;
        for seed in 0..40 {
            let config = SimConfig::new(Profile::upstream_2_14()).seed(seed);
            let device = SimDevice::new(config);
            let ended = device.run(|main| {
                let x = device.alloc(4)?;
                main.scope(|scope| {
                    let (device, x) = (&device, &x);
                    let adds = scope.spawn("adds", move |_| {
                        (0..20).try_for_each(|_| device.add_completed_handler())
                    });
                    let commits = scope.spawn("commits", move |_| {
                        (0..20).try_for_each(|_| {
                            device.encode(Op::kernel("fill"), &[], &[x], |_, w| w[0].fill(1))?;
                            device.synchronise()
                        })
                    });
                    adds.join().and_then(|added| added)?;
                    commits.join().and_then(|committed| committed)
                })
            });
            if let Err(SimError::Aborted(abort)) = ended
                && abort.fault == Fault::HandlerAfterCommit
            {
                handler_late += 1;
                assert!(abort.to_string().contains("Completed handler provided after commit call"));
            }
        }
        assert!(handler_late > 0);
    });
}

#[test]
fn r5_a_thread_that_dies_on_the_queue_leaves_the_others_waiting() {
    within_time(|| {
        let device = device(Profile::upstream_2_15());
        let ended = device.run(|main| {
            main.scope(|scope| {
                let device = &device;
                let dies =
                    scope.spawn("dies", move |_| device.on_queue(|| panic!("killed")).map(drop));
                assert!(matches!(dies.join(), Err(SimError::Panicked { .. })));
                let waits = scope.spawn("waits", move |_| device.synchronise());
                waits.join().and_then(|synchronised| synchronised)
            })
        });
        let Err(SimError::Hang(hang)) = ended else {
            panic!("{ended:?}");
        };
        let waits = hang.waiting.iter().find(|w| w.thread == "waits").unwrap();
        assert!(waits.waits_for.contains("serial queue"), "{hang}");
        assert!(waits.waits_for.contains("`dies`"), "{hang}");
    });
}

#[test]
fn r5_waiting_for_the_own_queue_is_a_hang() {
    within_time(|| {
        let device = device(Profile::upstream_2_15());
        let ended = device.run(|_| device.on_queue(|| device.synchronise()));
        assert!(matches!(ended, Err(SimError::Hang(_))), "{ended:?}");
    });
}

#[test]
fn r6_first_use_of_kernels_by_two_threads_races_unless_locked() {
    within_time(|| {
        let races = |profile: Profile| {
            let trial = |seed| CrashTrial::new(profile.clone()).seed(seed).threads(4);
            let raced = |seed: &u64| {
                let ended = trial(*seed).run(Crash::FirstUse);
                matches!(ended, Err(SimError::Aborted(a)) if matches!(a.fault, Fault::CacheRace { .. }))
            };
            (0..20).filter(raced).count()
        };
        let unlocked = Profile::upstream_2_15().with_caches_locked(false);
        assert!(races(unlocked) > 0);
        assert_eq!(races(Profile::upstream_2_15()), 0);
    });
}

#[test]
fn r7_two_streams_that_encode_one_kernel_abort_unless_locked() {
    within_time(|| {
        let profile = Profile::user_streams_2_15();
        let run =
            |profile: Profile, seed| CrashTrial::new(profile).seed(seed).run(Crash::SharedKernel);
        for seed in 0..10 {
            let ended = run(profile.clone().with_kernels_locked(false), seed);
            let Err(SimError::Aborted(abort)) = ended else {
                panic!("{ended:?}");
            };
            assert!(matches!(abort.fault, Fault::KernelRace { .. }), "{abort}");
            assert!(run(profile.clone(), seed).is_ok());
        }
        let alone = CrashTrial::new(profile.with_kernels_locked(false)).through_worker();
        assert!(alone.run(Crash::SharedKernel).is_ok());
    });
}

#[test]
fn r8_a_queue_has_64_command_buffers() {
    within_time(|| {
        // One thread per stream shares nothing: more than 64 threads are no trouble.
        let device = device(Profile::fork_2_9_1());
        device
            .run(|main| {
                main.scope(|scope| {
                    let device = &device;
                    for thread in 0..70 {
                        scope.spawn(&format!("t{thread}"), move |_| {
                            let x = device.alloc(4).unwrap();
                            device
                                .encode(Op::kernel("fill"), &[], &[&x], |_, w| w[0].fill(1))
                                .unwrap();
                            assert_eq!(device.read(&x).unwrap(), [1; 4]);
                        });
                    }
                });
            })
            .unwrap();
        assert_eq!(device.stats().most_command_buffers, 1);
    });
}

#[test]
fn r9_the_graph_cache_grows_per_shape_and_empties() {
    within_time(|| {
        let device = device(Profile::upstream_2_15());
        let x = device.alloc(4).unwrap();
        let run = |shape: &str| {
            let op = Op::graph("fill").shapes(shape);
            device.encode(op, &[], &[&x], |_, w| w[0].fill(0)).unwrap();
        };
        for shape in ["[1]", "[2]", "[1]", "[2]", "[3]"] {
            run(shape);
        }
        let stats = device.stats();
        assert_eq!(stats.graphs, 3);
        assert_eq!(stats.graph_bytes, 3 * Profile::upstream_2_15().graph_bytes);
        // A kernel's shader serves all shapes.
        for _ in 0..2 {
            device
                .encode(Op::kernel("relu").shapes("[9]"), &[], &[&x], |_, w| w[0].fill(0))
                .unwrap();
        }
        assert_eq!(device.stats().shaders, 1);
        device.empty_cache().unwrap();
        assert_eq!(device.stats().graph_bytes, 0);
    });
}

#[test]
fn r10_an_action_of_another_thread_is_a_violation() {
    within_time(|| {
        let device = device(Profile::upstream_2_15());
        device
            .run(|main| {
                device.own(OwnershipCheck::Record).unwrap();
                let intrude = |name: &str| {
                    main.scope(|scope| {
                        let device = &device;
                        let thread = scope.spawn(name, move |_| device.alloc(4).map(drop));
                        thread.join().unwrap()
                    })
                };
                device.alloc(4).unwrap();
                assert!(device.violations().is_empty());
                intrude("guest").unwrap();
                intrude("guest").unwrap();
                let violations = device.violations();
                // Its allocation and its free, each once.
                assert_eq!(violations.len(), 2, "{violations:?}");
                assert_eq!(violations[0].thread, "guest");
                assert_eq!(violations[0].owner, "main");
                assert_eq!(violations[0].kind, ActionKind::Alloc);
                device.own(OwnershipCheck::Assert).unwrap();
                let error = intrude("guest").unwrap_err();
                assert!(matches!(error, SimError::Affinity(_)), "{error}");
                assert!(error.to_string().contains("`guest`"), "{error}");
            })
            .unwrap();
    });
}
