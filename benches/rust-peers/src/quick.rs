//! quick
use onelane::testing::*;
use onelane::*;
use std::sync::Arc;
use std::time::{Duration, Instant};

static CPU: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
fn closed(threads: usize, secs: f64, ask: Arc<dyn Fn(u64) -> u64 + Send + Sync>) -> f64 {
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let barrier = Arc::new(std::sync::Barrier::new(threads + 1));
    let hs: Vec<_> = (0..threads)
        .map(|t| {
            let (stop, ask, barrier) = (stop.clone(), ask.clone(), barrier.clone());
            std::thread::spawn(move || {
                barrier.wait();
                let mut n = 0u64;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let v = t as u64 * 1000000 + n;
                    assert_eq!(ask(v), v);
                    n += 1;
                }
                n
            })
        })
        .collect();
    barrier.wait();
    let c0 = cpu();
    let start = Instant::now();
    std::thread::sleep(Duration::from_secs_f64(secs));
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let el = start.elapsed();
    let n: u64 = hs.into_iter().map(|h| h.join().unwrap()).sum();
    CPU.store(((cpu() - c0) / n as f64 * 1e9) as u64, std::sync::atomic::Ordering::Relaxed);
    n as f64 / el.as_secs_f64()
}

fn cpu() -> f64 {
    let s = std::fs::read_to_string("/proc/self/stat").unwrap();
    let f: Vec<&str> = s.rsplit(')').next().unwrap().split_whitespace().collect();
    (f[11].parse::<f64>().unwrap() + f[12].parse::<f64>().unwrap()) / 100.0
}
fn crossbeam() -> Arc<dyn Fn(u64) -> u64 + Send + Sync> {
    let (tx, rx) = crossbeam_channel::unbounded::<(u64, oneshot::Sender<u64>)>();
    std::thread::spawn(move || {
        let mut batch = Vec::new();
        while let Ok(first) = rx.recv() {
            batch.push(first);
            while batch.len() < 256 {
                match rx.try_recv() {
                    Ok(x) => batch.push(x),
                    Err(_) => break,
                }
            }
            let out: Vec<u64> = batch.iter().map(|b| b.0).collect();
            for ((_, tx), v) in batch.drain(..).zip(out) {
                let _ = tx.send(v);
            }
        }
    });
    Arc::new(move |v| {
        let (s, r) = oneshot::channel();
        tx.send((v, s)).unwrap();
        r.recv().unwrap()
    })
}
fn lane() -> Arc<dyn Fn(u64) -> u64 + Send + Sync> {
    let d = DeviceExecutor::new(ExecutorConfig::new("bench")).unwrap();
    let q =
        BatchQueue::new(&d, BatchConfig::default().max_batch_size(256).capacity(100000), || {
            Ok(FakeEngine::echo())
        })
        .unwrap();
    Arc::new(move |v| q.submit(FakeItem::new(v)).unwrap().wait().unwrap())
}

fn main() {
    let rounds = 5;
    let a: Vec<String> = std::env::args().collect();
    if a.len() > 2 {
        let n: usize = a[2].parse().unwrap();
        for _ in 0..5 {
            let r = closed(n, 1.0, if a[1] == "x" { crossbeam() } else { lane() });
            println!("{r:.0} cpu {}", CPU.load(std::sync::atomic::Ordering::Relaxed));
        }
        return;
    }
    for threads in [1, 8, 64, 256] {
        let mut r = vec![];
        let mut cs = vec![];
        for _ in 0..rounds {
            let a = closed(threads, 0.5, crossbeam());
            let ca = CPU.load(std::sync::atomic::Ordering::Relaxed);
            let b = closed(threads, 0.5, lane());
            let cb = CPU.load(std::sync::atomic::Ordering::Relaxed);
            cs.push((ca, cb));
            r.push((b / a, a, b));
        }
        r.sort_by(|x, y| x.0.total_cmp(&y.0));
        cs.sort();
        println!("cpu ns/req {:?} ", cs[rounds / 2]);
        println!(
            "{threads:4} threads: ratio {:.2} [{:.2}..{:.2}] crossbeam {:.0} onelane {:.0}",
            r[rounds / 2].0,
            r[0].0,
            r[rounds - 1].0,
            r[rounds / 2].1,
            r[rounds / 2].2
        );
    }
    let rt = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    for tasks in [8usize, 64, 256] {
        let mut r = vec![];
        for _ in 0..rounds {
            let per = 400_000 / tasks as u64;
            let a = rt.block_on(async {
                let (tx, mut rx) = tokio::sync::mpsc::unbounded_channel::<(
                    u64,
                    tokio::sync::oneshot::Sender<u64>,
                )>();
                let w = std::thread::spawn(move || {
                    let mut buf = Vec::new();
                    futures_executor::block_on(async {
                        while rx.recv_many(&mut buf, 256).await > 0 {
                            for (v, s) in buf.drain(..) {
                                let _ = s.send(v);
                            }
                        }
                    })
                });
                let start = Instant::now();
                let hs: Vec<_> = (0..tasks)
                    .map(|t| {
                        let tx = tx.clone();
                        tokio::spawn(async move {
                            for i in 0..per {
                                let v = t as u64 * 1000000 + i;
                                let (s, r) = tokio::sync::oneshot::channel();
                                tx.send((v, s)).ok().unwrap();
                                assert_eq!(r.await.unwrap(), v);
                            }
                        })
                    })
                    .collect();
                for h in hs {
                    h.await.unwrap();
                }
                let e = start.elapsed();
                drop(tx);
                w.join().unwrap();
                per as f64 * tasks as f64 / e.as_secs_f64()
            });
            let b = rt.block_on(async {
                let d = DeviceExecutor::new(ExecutorConfig::new("bench")).unwrap();
                let q = BatchQueue::new(
                    &d,
                    BatchConfig::default().max_batch_size(256).capacity(100000),
                    || Ok(FakeEngine::echo()),
                )
                .unwrap();
                let start = Instant::now();
                let hs: Vec<_> = (0..tasks)
                    .map(|t| {
                        let q = q.clone();
                        tokio::spawn(async move {
                            for i in 0..per {
                                let v = t as u64 * 1000000 + i;
                                assert_eq!(q.infer(FakeItem::new(v)).await.unwrap(), v);
                            }
                        })
                    })
                    .collect();
                for h in hs {
                    h.await.unwrap();
                }
                per as f64 * tasks as f64 / start.elapsed().as_secs_f64()
            });
            r.push((b / a, a, b));
        }
        r.sort_by(|x, y| x.0.total_cmp(&y.0));
        println!(
            "{tasks:4} tasks: ratio {:.2} [{:.2}..{:.2}] tokio {:.0} onelane {:.0}",
            r[rounds / 2].0,
            r[0].0,
            r[rounds - 1].0,
            r[rounds / 2].1,
            r[rounds / 2].2
        );
    }
}
