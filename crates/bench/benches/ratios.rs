//! onelane against other queues at 1, 8, 64 and 256 client threads and 256 async tasks: medians of
//! the ratios of neighbours, over many short rounds. A machine that is busy with something else
//! slows both of a pair; this is the figure to publish.
//!
//!     cargo bench -p onelane-bench --bench ratios [-- --rounds 15 --only crossbeam,onelane]
//!
//! A ratio above 1 means that onelane answers more requests per second.

use std::time::Duration;

use clap::Parser;
use onelane_bench::generator::Limit;
use onelane_bench::peers::{Closed, Kind, Peer, PeerVisitor, tasks, threads};
use onelane_bench::{Paired, median};

/// onelane against other queues, without an engine, closed loop.
#[derive(Parser)]
struct Args {
    /// Rounds; in each every queue has its turn
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// How long one turn takes
    #[arg(long, default_value_t = 250)]
    window_ms: u64,
    /// Numbers of client threads
    #[arg(long, value_delimiter = ',', default_value = "1,8,64,256")]
    threads: Vec<usize>,
    /// Numbers of async tasks
    #[arg(long, value_delimiter = ',', default_value = "256")]
    tasks: Vec<usize>,
    /// Threads of the tasks' runtime
    #[arg(long, default_value_t = 2)]
    workers: usize,
    /// Only these queues
    #[arg(long, value_delimiter = ',')]
    only: Vec<Kind>,
    /// What cargo passes
    #[arg(long, hide = true)]
    bench: bool,
}

/// Closed-loop clients of one kind.
#[derive(Clone, Copy)]
enum Clients {
    Threads(usize),
    Tasks(usize, usize),
}

struct Turn(Clients, Limit);

impl PeerVisitor for Turn {
    type Output = Closed;

    fn visit<P: Peer>(self) -> Closed {
        match self.0 {
            Clients::Threads(count) => threads::<P>(count, self.1),
            Clients::Tasks(count, workers) => tasks::<P>(count, workers, self.1),
        }
    }
}

fn main() {
    let args = Args::parse();
    let kinds = if args.only.is_empty() { Kind::ALL.to_vec() } else { args.only.clone() };
    let own = kinds.iter().position(|&kind| kind == Kind::Onelane);
    println!("clients,queue,requests_per_second,cpu_ns_per_request,onelane_ratio,least,greatest");
    let threads = args.threads.iter().map(|&count| (Clients::Threads(count), "threads", count));
    let tasks =
        args.tasks.iter().map(|&count| (Clients::Tasks(count, args.workers), "tasks", count));
    for (clients, what, count) in threads.chain(tasks) {
        let mut paired = Paired::default();
        let mut cpu = vec![Vec::new(); kinds.len()];
        for round in 0..args.rounds {
            let mut rates = vec![0.0; kinds.len()];
            // Nobody always comes after the same one.
            for turn in 0..kinds.len() {
                let at = (turn + round) % kinds.len();
                let limit = Limit::Time(Duration::from_millis(args.window_ms));
                let closed = kinds[at].visit(Turn(clients, limit));
                rates[at] = closed.rate();
                cpu[at].push(closed.cpu_ns());
            }
            paired.push(rates);
        }
        for (at, kind) in kinds.iter().enumerate() {
            let cpu = median(cpu[at].iter().copied()).unwrap_or(0.0);
            print!("{count} {what},{},{:.0},{cpu:.0}", kind.name(), paired.rate(at));
            match own {
                Some(own) => {
                    let [middle, least, greatest] = paired.ratio(own, at);
                    println!(",{middle:.2},{least:.2},{greatest:.2}");
                }
                None => println!(",,,"),
            }
        }
    }
}
