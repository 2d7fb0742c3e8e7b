//! H14: one open command buffer per thread, and 64 on a queue: the thread that wants the 65th waits for
//! ever, with the lock that the others need to commit.

use super::data::{Seeded, WEIGHTS};
use crate::device::{SimConfig, SimDevice};
use crate::error::SimResult;
use crate::profile::Profile;
use crate::sync::SimChannel;

/// Runs one small operation on each of `threads` threads, after one on the main thread (which loaded
/// the weights), directly or through one worker. How many threads got their result.
///
/// # Errors
/// [`SimError::Hang`](crate::SimError::Hang) when nobody can go on.
pub fn in_flight(
    profile: Profile,
    (threads, worker): (usize, bool),
    seed: u64,
) -> SimResult<usize> {
    let device = SimDevice::new(SimConfig::new(profile).seed(seed));
    let host = Seeded::new(WEIGHTS).normal(&[16, 16]);
    let compute = |device: &SimDevice| {
        let x = device.upload(&host)?;
        let y = x.relu()?;
        device.synchronise()?;
        y.download().map(drop)
    };
    device.run(|main| {
        if !worker {
            compute(&device)?;
        }
        let requests: SimChannel<SimChannel<SimResult<()>>> = SimChannel::new(&device, "requests");
        main.scope(|scope| {
            let (device, compute) = (&device, &compute);
            let working = worker.then(|| {
                let requests = requests.clone();
                scope.spawn("worker", move |_| {
                    compute(device)?;
                    while let Some(answer) = requests.receive()? {
                        answer.send(compute(device))?;
                    }
                    SimResult::Ok(())
                })
            });
            let handles: Vec<_> = (0..threads)
                .map(|thread| {
                    let requests = requests.clone();
                    scope.spawn(&format!("t{thread}"), move |_| {
                        if !worker {
                            return compute(device);
                        }
                        let answer = SimChannel::new(device, "answer");
                        requests.send(answer.clone())?;
                        answer.receive()?.expect("answers are not closed")
                    })
                })
                .collect();
            let mut done = 0;
            for handle in handles {
                handle.join().and_then(|result| result)?;
                done += 1;
            }
            requests.close()?;
            working.map_or(Ok(()), |worker| worker.join().and_then(|ended| ended))?;
            Ok(done)
        })
    })?
}
