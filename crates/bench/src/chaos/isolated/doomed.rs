//! A parent that is killed: its children have to be gone within a second.

use std::io::{BufRead, BufReader, Write as _};
use std::process::Stdio;
use std::time::{Duration, Instant};

use onelane::{BatchConfig, BatchQueue, DeviceExecutor};
use onelane_isolate::{Isolated, IsolationConfig, Supervisor, this_program};

use super::engine::{Act, Ask, Faulty};
use super::world::{VARIABLE, child};

const GONE_WITHIN: Duration = Duration::from_secs(1);

/// Starts two children, one of them in a batch that does not end, says who they are, and waits to
/// be killed; if this process is no such parent, returns at once.
pub(super) fn play_part() {
    if std::env::var_os(VARIABLE).is_none() {
        return;
    }
    let supervisor = Supervisor::new(child, IsolationConfig::default().spare(true));
    let supervisor = supervisor.expect("usable settings");
    let device = DeviceExecutor::shared("chaos").expect("a worker");
    let factory = Isolated::<Faulty>::factory(&supervisor);
    let queue = BatchQueue::new(&device, BatchConfig::default(), factory).expect("a child");
    while !supervisor.stats().spare {
        std::thread::sleep(Duration::from_millis(1));
    }
    let hangs = queue.submit(Ask { act: Act::Hang, number: 0, data: Vec::new() }).expect("open");
    for child in supervisor.stats().children {
        println!("{child}");
    }
    println!("ready");
    let _ = std::io::stdout().flush();
    panic!("it is killed before there is an answer: {}", hangs.wait().is_ok());
}

/// Starts one and kills it.
///
/// # Errors
/// What was left, in words.
pub(super) fn kill_one() -> Result<(), String> {
    let mut command = this_program();
    command.env(VARIABLE, "1").stdin(Stdio::null()).stdout(Stdio::piped());
    let mut parent = command.spawn().map_err(|error| format!("no parent: {error}"))?;
    let output = parent.stdout.take().map(BufReader::new);
    let lines = output.into_iter().flat_map(BufRead::lines).map_while(Result::ok);
    let children: Vec<String> = lines.take_while(|line| line != "ready").collect();
    let killed = parent.kill().and_then(|()| parent.wait());
    killed.map_err(|error| format!("a parent was not killed: {error}"))?;
    if children.len() != 2 {
        return Err(format!("a parent had the children {children:?}, not two"));
    }
    let since = Instant::now();
    while children.iter().any(|child| lives(child)) {
        if since.elapsed() > GONE_WITHIN {
            return Err(format!("of {children:?} some live {GONE_WITHIN:?} after their parent"));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// Whether there is such a process, not counting one that has only to be reaped.
fn lives(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(" Z"))
}
