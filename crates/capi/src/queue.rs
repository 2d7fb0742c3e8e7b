//! Queues of the ABI.

use std::sync::Arc;

use onelane::BatchQueue;

use crate::contain::contain;
use crate::engine::{
    EngineSpec, EngineTable, QueueSettings, RequestSpec, duration, request, shutdown_mode,
};
use crate::error::{Failure, failure};
use crate::executor;
use crate::handles::{Executor, Handles, Queue, Ticket};
use crate::sized;
use crate::stats::{HealthReport, Statistics, health_report, statistics};
use crate::status::*;
use crate::submitted::{AnyHandle, Done, Submitted, refuse};
use crate::table_engine::{Item, TableEngine};
use crate::ticket;

struct Open {
    queue: BatchQueue<TableEngine>,
    spec: Arc<EngineSpec>,
    device: onelane::DeviceExecutor,
}

static QUEUES: Handles<Arc<Open>, Queue> = Handles::new(2, "queue");

fn open(queue: *mut Queue) -> Result<Arc<Open>, Failure> {
    QUEUES.with(queue, Arc::clone)
}

pub(crate) unsafe extern "C" fn new(
    executor: *mut Executor,
    config: *const QueueSettings,
    engine: *const EngineTable,
    queue: *mut *mut Queue,
) -> Status {
    contain(|| {
        // SAFETY: the caller passes NULL or a struct that begins with its size.
        let table = unsafe { sized::read(engine) }?;
        sized::check_out(queue, "queue")?;
        if table.run.is_none() {
            return Err(failure(ONELANE_INVALID_ARGUMENT, "onelane_engine.run is NULL"));
        }
        // From here on the context is dropped whatever happens.
        let spec = Arc::new(EngineSpec::new(table));
        let device = executor::get(executor)?;
        let config = if config.is_null() {
            onelane::BatchConfig::default()
        } else {
            // SAFETY: as above, and its name is NULL or a C string.
            unsafe { sized::read(config)?.to_config() }?
        };
        let build = {
            let spec = Arc::clone(&spec);
            move || TableEngine::build(&spec)
        };
        let opened = BatchQueue::new(&device, config, build)?;
        let handle = QUEUES.insert(Arc::new(Open { queue: opened, spec, device }))?;
        // SAFETY: it was checked above.
        unsafe { queue.write(handle) };
        Ok(())
    })
}

pub(crate) unsafe extern "C" fn submit(
    queue: *mut Queue,
    spec: *const RequestSpec,
    timeout_ns: u64,
    ticket: *mut *mut Ticket,
) -> Status {
    contain(|| {
        // SAFETY: the caller passes NULL or a struct that begins with its size.
        let RequestSpec { item, key, cost, deadline_ns, priority, .. } =
            unsafe { sized::read(spec) }?;
        let open = open(queue)?;
        if ticket.is_null() && !open.spec.has_done() {
            let text = "there is neither a ticket nor a `done` to hear of the end of this request";
            return Err(failure(ONELANE_INVALID_ARGUMENT, text));
        }
        let submitted = Submitted::new(item, Done::Engine(Arc::clone(&open.spec)));
        let item = Item { submitted: Arc::clone(&submitted), key, cost: cost.max(1) };
        let request = match request(item, priority, deadline_ns) {
            Ok(request) => request,
            Err(failure) => {
                submitted.refuse();
                return Err(failure);
            }
        };
        let accepted = match timeout_ns {
            0 => open.queue.try_submit(request),
            ONELANE_FOREVER => open.queue.submit(request),
            some => open.queue.submit_timeout(request, duration(some)),
        };
        match accepted {
            Ok(handle) => ticket::hand_out(ticket, submitted, AnyHandle::Request(handle)),
            Err(refused) => Err(refuse(&submitted, refused)),
        }
    })
}

pub(crate) unsafe extern "C" fn is_worker(queue: *mut Queue, is_worker: *mut bool) -> Status {
    contain(|| {
        sized::check_out(is_worker, "is_worker")?;
        let is = open(queue)?.device.is_worker();
        // SAFETY: it was checked above.
        unsafe { is_worker.write(is) };
        Ok(())
    })
}

pub(crate) unsafe extern "C" fn close(queue: *mut Queue) -> Status {
    contain(|| {
        open(queue)?.queue.close();
        Ok(())
    })
}

pub(crate) unsafe extern "C" fn shutdown(queue: *mut Queue, mode: i32, timeout_ns: u64) -> Status {
    contain(|| Ok(open(queue)?.queue.shutdown(shutdown_mode(mode)?, duration(timeout_ns))?))
}

pub(crate) unsafe extern "C" fn stats(queue: *mut Queue, stats: *mut Statistics) -> Status {
    contain(|| {
        let taken = statistics(&open(queue)?.queue.stats());
        // SAFETY: the caller passes NULL or a struct that begins with its size.
        unsafe { sized::write(stats, taken) }
    })
}

pub(crate) unsafe extern "C" fn health(queue: *mut Queue, health: *mut HealthReport) -> Status {
    contain(|| {
        let report = health_report(&open(queue)?.queue.health());
        // SAFETY: the caller passes NULL or a struct that begins with its size.
        unsafe { sized::write(health, report) }
    })
}

pub(crate) unsafe extern "C" fn release(queue: *mut Queue) -> Status {
    contain(|| {
        drop(QUEUES.take(queue)?);
        Ok(())
    })
}
