//! What a run of the checker looks at: how many clients, requests and workers there are, and what
//! may happen to them.

use crate::bug::Bug;

/// What the engine makes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Nature {
    /// It is answered.
    Good,
    /// Every batch that holds it fails.
    Poison,
    /// Every batch that holds it panics; the engine is lost.
    Bomb,
    /// Its engine asks the second queue of the same device, and waits, in the middle of the batch.
    Asks(u8),
}

/// One request, as it is before it is submitted.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// 0 is Interactive, 2 is Bulk.
    pub class: u8,
    /// Only requests of equal key share a batch.
    pub key: u8,
    /// The queue: 0 has a bounded capacity, 1 is asked by engines.
    pub queue: u8,
    /// What the engine makes of it.
    pub nature: Nature,
    /// It has a deadline, which may pass at any moment.
    pub deadline: bool,
    /// Its handle may be dropped at any moment.
    pub cancels: bool,
}

impl Plan {
    /// A request that nothing happens to.
    pub const fn good() -> Self {
        Self { class: 1, key: 0, queue: 0, nature: Nature::Good, deadline: false, cancels: false }
    }
}

/// What the shutdown may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Run what was accepted.
    Drain,
    /// Answer what waits with an error.
    Abort,
}

/// One size of the model.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The name on the command line.
    pub name: &'static str,
    /// All requests.
    pub plans: Vec<Plan>,
    /// For each client, what it submits, in order; more than one at once is a group.
    pub clients: Vec<Vec<Vec<u8>>>,
    /// Worker threads.
    pub workers: usize,
    /// The most requests that wait in queue 0.
    pub capacity: usize,
    /// The most requests in a batch.
    pub max_batch: usize,
    /// How a shutdown may go; it comes at any moment, once per life of the executor.
    pub modes: Vec<Mode>,
    /// Whether the executor is made anew after its shutdown.
    pub restart: bool,
    /// Whether a client makes a further queue, at any moment.
    pub maker: bool,
    /// Whether a client may leave the line for room.
    pub impatient: bool,
    /// Whether a worker thread may die, at any moment between two steps.
    pub death: bool,
    /// Whether a rebuild of a lost engine may fail.
    pub rebuild_fails: bool,
    /// The deliberate fault, if any.
    pub bug: Option<Bug>,
}

impl Scenario {
    fn new(name: &'static str, plans: Vec<Plan>, clients: Vec<Vec<Vec<u8>>>) -> Self {
        Self {
            name,
            plans,
            clients,
            workers: 1,
            capacity: 8,
            max_batch: 2,
            modes: vec![Mode::Drain, Mode::Abort],
            restart: false,
            maker: false,
            impatient: false,
            death: false,
            rebuild_fails: false,
            bug: None,
        }
    }

    /// Whether that fault has been put in.
    pub fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }
}

/// All scenarios; `full` takes more clients and requests.
pub fn all(full: bool) -> Vec<Scenario> {
    let good = Plan::good();
    let cancels = Plan { cancels: true, ..good };
    let deadline = Plan { deadline: true, ..good };
    let more = usize::from(full);
    let mut scenarios = Vec::new();

    // Submit, cancel and deadline against dispatch and shutdown.
    let plans = vec![good, cancels, deadline, good, Plan { key: 1, ..cancels }, deadline];
    let clients = if full {
        vec![vec![vec![0], vec![3]], vec![vec![1], vec![4]], vec![vec![2], vec![5]]]
    } else {
        vec![vec![vec![0], vec![3]], vec![vec![1]], vec![vec![2]]]
    };
    scenarios.push(Scenario::new("clients", plans, clients));

    // Room for one: clients stand in line, leave it, and are let in.
    let plans = vec![cancels; 4 + more];
    let mut clients = vec![vec![vec![0], vec![1]], vec![vec![2]], vec![vec![3]]];
    if full {
        clients.push(vec![vec![4]]);
    }
    let mut line = Scenario::new("line", plans, clients);
    (line.capacity, line.max_batch, line.impatient) = (1, 1, true);
    scenarios.push(line);

    // Errors and panics: a batch is bisected, the engine rebuilt, or not.
    let faulty = |nature| Plan { nature, cancels: full, ..good };
    let mut plans = vec![good, faulty(Nature::Poison), faulty(Nature::Bomb), good];
    let mut clients = vec![vec![vec![0, 1]], vec![vec![2], vec![3]]];
    if full {
        plans.extend([good, faulty(Nature::Bomb)]);
        clients.push(vec![vec![4], vec![5]]);
    }
    let mut faults = Scenario::new("faults", plans, clients);
    (faults.max_batch, faults.rebuild_fails) = (4, true);
    scenarios.push(faults);

    // An engine asks another queue of its device, which clients use too.
    let inner = Plan { queue: 1, ..good };
    let mut plans = vec![
        Plan { nature: Nature::Asks(1), ..good },
        inner,
        Plan { cancels: true, ..inner },
        good,
    ];
    let mut clients = vec![vec![vec![0]], vec![vec![2]], vec![vec![3]]];
    if full {
        plans.extend([Plan { nature: Nature::Asks(5), ..good }, inner]);
        clients.push(vec![vec![4]]);
    }
    let mut nested = Scenario::new("nested", plans.clone(), clients.clone());
    nested.max_batch = 2;
    scenarios.push(nested);

    // The same on two workers.
    let mut nested = Scenario::new("nested-two-workers", plans, clients);
    nested.workers = 2;
    scenarios.push(nested);

    // A group brings work for two workers.
    let plans = vec![good, Plan { key: 1, ..good }, cancels, Plan { key: 1, ..deadline }, good];
    let mut clients = vec![vec![vec![0, 1]], vec![vec![2, 3]]];
    if full {
        clients.push(vec![vec![4]]);
    }
    let mut workers = Scenario::new("workers", plans, clients);
    (workers.workers, workers.capacity) = (2, 3);
    scenarios.push(workers);

    // The executor is shut down and made anew while clients submit.
    let clients = if full {
        vec![vec![vec![0], vec![1]], vec![vec![2], vec![3]], vec![vec![4]]]
    } else {
        vec![vec![vec![0], vec![1]], vec![vec![2], vec![3]]]
    };
    let mut restart = Scenario::new("restart", vec![cancels; 5], clients);
    (restart.restart, restart.capacity) = (true, 2);
    scenarios.push(restart);

    // A queue is made while the executor ends.
    let mut maker = Scenario::new("maker", vec![good; 3], vec![vec![vec![0]], vec![vec![1]]]);
    (maker.maker, maker.workers) = (true, 1 + more);
    scenarios.push(maker);

    // A worker dies, whatever it is doing.
    let plans = vec![good, cancels, Plan { key: 1, ..good }, good];
    let mut clients = vec![vec![vec![0], vec![1]], vec![vec![2]]];
    if full {
        clients.push(vec![vec![3]]);
    }
    for (name, workers) in [("death", 1), ("death-of-two", 2)] {
        let mut death = Scenario::new(name, plans.clone(), clients.clone());
        (death.death, death.workers, death.capacity) = (true, workers, 2);
        scenarios.push(death);
    }

    // One Bulk request among a stream of Interactive ones.
    let interactive = Plan { class: 0, ..good };
    let mut plans = vec![Plan { class: 2, ..good }];
    plans.extend(vec![interactive; 5 + more]);
    let stream = (1..plans.len() as u8).map(|request| vec![request]).collect();
    let mut ageing = Scenario::new("ageing", plans, vec![vec![vec![0]], stream]);
    (ageing.max_batch, ageing.modes) = (1, vec![Mode::Drain]);
    scenarios.push(ageing);
    scenarios
}
