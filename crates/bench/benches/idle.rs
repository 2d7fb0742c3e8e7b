//! Wake-ups per second of queues that nobody asks.
//!
//!     cargo bench -p onelane-bench --bench idle [-- SECONDS]
//!
//! Each queue answers a few requests and is then left alone with its clients' handles still there.
//! A thread that goes to sleep was awake: what is counted are the voluntary context switches of all
//! threads but the main one, from the kernel. Exit 1 when onelane's are not 0.

use std::process::ExitCode;
use std::time::Duration;

use onelane_bench::generator::Client;
use onelane_bench::peers::{Kind, Peer, PeerVisitor, Work, voluntary_switches};

struct Idle(f64);

impl PeerVisitor for Idle {
    type Output = Option<f64>;

    fn visit<P: Peer>(self) -> Option<f64> {
        let peer = P::start(Work::default(), 1);
        let mut client = peer.client().expect("a client can be had");
        for value in 0..100 {
            assert_eq!(client.ask(value), value);
        }
        // What the last answer left to do is done by then.
        std::thread::sleep(Duration::from_millis(100));
        let before = voluntary_switches()?;
        std::thread::sleep(Duration::from_secs_f64(self.0));
        Some((voluntary_switches()? - before) as f64 / self.0)
    }
}

fn main() -> ExitCode {
    let seconds = std::env::args().skip(1).find_map(|arg| arg.parse().ok()).unwrap_or(3.0);
    let mut idle = true;
    for kind in Kind::ALL {
        match kind.visit(Idle(seconds)) {
            Some(rate) => {
                println!("{:>20}: {rate:.1} wake-ups per second when idle", kind.name());
                idle &= kind != Kind::Onelane || rate == 0.0;
            }
            None => println!("SKIPPED: there is no /proc on this system"),
        }
    }
    ExitCode::from(u8::from(!idle))
}
