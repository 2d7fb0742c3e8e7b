//! x
use onelane_sim::scenario::*;
use onelane_sim::*;
fn main() {
    for c in [] as [Crash; 0] {
        for p in [Profile::upstream_2_14(), Profile::upstream_2_15(), Profile::user_streams_2_15(), Profile::user_streams_2_15().with_kernels_locked(false)] {
            for w in [false, true] {
                let r: Vec<String> = (0..20).map(|s| { let mut t = CrashTrial::new(p.clone()).seed(s); t.worker = w; match t.run(c) { Ok(r) => format!("{}/{}", r.done, r.wrong), Err(SimError::Aborted(a)) => format!("{:?}", a.fault).chars().take(12).collect(), Err(e) => format!("!!{e}") } }).collect();
                println!("{c} {} worker={w}: {}", p.name, r.join(" "));
            }
        }
    }
    println!("{:?}", growth(Profile::upstream_2_15(), 315, Buckets::None));
    println!("{:?}", growth(Profile::upstream_2_15(), 315, Buckets::Multiple(64)));
    println!("{:?}", growth(Profile::upstream_2_15(), 315, Buckets::PowerOfTwo));
    for n in [8, 62, 63, 64, 65] { for w in [false, true] { println!("{n} {w} {}", (0..5).map(|s| match in_flight(Profile::candle_metal(), (n, w), s) {Ok(n)=>n.to_string(), Err(e)=>format!("{e}").chars().take(300).collect()}).collect::<Vec<_>>().join(" | ")); } }
    for u in [Use::OtherThread, Use::UnderLock, Use::Worker] { println!("{u:?} {:?}", affinity(Profile::mlx(), u, 1).map_err(|e| e.to_string())); }
    for prog in [Program::Race, Program::Attention, Program::AttentionWithPatch035] {
        for p in [Profile::fork_2_9_1(), Profile::fork_2_9_1().with_reuse(Reuse::PerStream), Profile::fork_2_9_1().with_reuse(Reuse::Retain), Profile::user_streams_2_15(), Profile::fork_2_9_1().with_streams(StreamPolicy::Shared)] {
            match counterexample(p.clone(), prog) { Ok(c) => { println!("{prog:?} {} {} worst {}", p.name, p.reuse, c.worst); if p == Profile::fork_2_9_1() { for s in &c.steps { println!("{s}"); } } } Err(e) => println!("{prog:?} {} {e}", p.name) }
        }
    }
    let trial = Trial::new(Profile::fork_2_9_1());
    for p in Prediction::ALL { let t = std::time::Instant::now(); println!("{p:?} {:?} {:?}", (0..3).map(|s| p.holds(&trial.clone().seed(s))).collect::<Vec<_>>(), t.elapsed()); }
}
