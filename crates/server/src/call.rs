//! What a call says of itself beside its texts: how urgent it is, and until when it is wanted.

use std::time::{Duration, Instant};

use axum::http::HeaderMap;
use onelane::Priority;
use serde_json::Value;

use crate::failure::Failure;
use crate::whole::whole;

/// A call with more texts than this is bulk, if it does not say otherwise.
const BULK: usize = 32;

/// A deadline further away than this is none.
const FAR: Duration = Duration::from_secs(366 * 24 * 3600);

/// How urgent a call is, and until when it is wanted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    pub(crate) arrived: Instant,
    pub(crate) priority: Option<Priority>,
    pub(crate) deadline: Option<Instant>,
}

impl Call {
    /// By the server's own timeout alone.
    pub(crate) fn new(timeout: Option<Duration>) -> Self {
        let arrived = Instant::now();
        let call = Self { arrived, priority: None, deadline: None };
        timeout.map_or(call, |timeout| call.within(timeout))
    }

    /// By the headers, and by the server's own timeout.
    ///
    /// # Errors
    /// A header of ours that makes no sense; those of others are passed over.
    pub(crate) fn from_headers(
        headers: &HeaderMap,
        timeout: Option<Duration>,
    ) -> Result<Self, Failure> {
        let mut call = Self::new(timeout);
        call.priority = priority_of(headers)?;
        for (name, unit) in
            [("x-request-timeout-ms", 1e-3), ("x-envoy-expected-rq-timeout-ms", 1e-3)]
        {
            if let Some(value) = text(headers, name) {
                let number = value.trim().parse::<u64>().map_err(|_| {
                    Failure::malformed(format!("{name} must be a number of milliseconds"))
                })?;
                call = call.within(seconds(number as f64 * unit));
            }
        }
        // The openai client sends its own timeout, in seconds.
        let stainless = text(headers, "x-stainless-read-timeout");
        if let Some(after) = stainless.and_then(|value| value.trim().parse::<f64>().ok())
            && after.is_finite()
            && after > 0.0
        {
            call = call.within(seconds(after));
        }
        if let Some(after) = text(headers, "grpc-timeout").and_then(grpc_timeout) {
            call = call.within(after);
        }
        Ok(call)
    }

    /// With a deadline no later than `after` its arrival.
    pub(crate) fn within(mut self, after: Duration) -> Self {
        let asked = self.arrived.checked_add(after.min(FAR));
        self.deadline = match (self.deadline, asked) {
            (Some(old), Some(new)) => Some(old.min(new)),
            (old, new) => old.or(new),
        };
        self
    }

    /// With the priority that a body names, if the headers name none: a class, or vLLM's number
    /// (lower is sooner, 0 is normal).
    ///
    /// # Errors
    /// When it is neither.
    pub(crate) fn body_priority(mut self, value: Option<&Value>) -> Result<Self, Failure> {
        let priority = match value {
            None | Some(Value::Null) => return Ok(self),
            Some(Value::String(name)) => name
                .parse::<Priority>()
                .map_err(|error| Failure::malformed(error.to_string()).at("priority"))?,
            Some(Value::Number(number)) if whole(number).is_some() => match whole(number) {
                Some(..=-1) => Priority::Interactive,
                Some(0) => Priority::Normal,
                _ => Priority::Bulk,
            },
            Some(_) => {
                let message = "must be interactive, normal, bulk or a whole number";
                return Err(Failure::malformed(message).at("priority"));
            }
        };
        self.priority.get_or_insert(priority);
        Ok(self)
    }

    /// The Open Inference Protocol's: 0 is unsaid, 1 the most urgent.
    pub(crate) fn oip_priority(mut self, value: u64) -> Self {
        let priority = match value {
            0 => return self,
            1 => Priority::Interactive,
            2 => Priority::Normal,
            _ => Priority::Bulk,
        };
        self.priority.get_or_insert(priority);
        self
    }

    /// The class of a call of so many texts.
    pub(crate) fn class(&self, texts: usize) -> Priority {
        let unsaid = if texts > BULK { Priority::Bulk } else { Priority::Normal };
        self.priority.unwrap_or(unsaid)
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn seconds(value: f64) -> Duration {
    Duration::try_from_secs_f64(value).unwrap_or(FAR)
}

/// `x-priority`, else RFC 9218's urgency: 0 to 2 is interactive, 3 normal, 4 to 7 bulk.
fn priority_of(headers: &HeaderMap) -> Result<Option<Priority>, Failure> {
    if let Some(value) = headers.get("x-priority") {
        let named = value.to_str().unwrap_or("?").trim().parse::<Priority>();
        return named.map(Some).map_err(|e| Failure::malformed(e.to_string()).at("x-priority"));
    }
    let urgency = text(headers, "priority").and_then(|value| {
        let member = value.split(',').map(str::trim).find_map(|m| m.strip_prefix("u="))?;
        member.split(';').next()?.trim().parse::<u8>().ok()
    });
    Ok(urgency.and_then(|urgency| match urgency {
        0..=2 => Some(Priority::Interactive),
        3 => Some(Priority::Normal),
        4..=7 => Some(Priority::Bulk),
        _ => None,
    }))
}

/// Up to eight digits and a unit: `H M S m u n`.
fn grpc_timeout(value: &str) -> Option<Duration> {
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(headers: &[(&'static str, &'static str)]) -> Result<Call, Failure> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        Call::from_headers(&map, Some(Duration::from_secs(100)))
    }

    #[test]
    fn the_least_deadline_counts() {
        for (headers, millis) in [
            (&[][..], 100_000),
            (&[("x-request-timeout-ms", "50")], 50),
            (&[("x-request-timeout-ms", "999999")], 100_000),
            (&[("x-envoy-expected-rq-timeout-ms", "15000")], 15_000),
            (&[("x-stainless-read-timeout", "2.5")], 2_500),
            (&[("x-stainless-read-timeout", "soon")], 100_000),
            (&[("grpc-timeout", "7S")], 7_000),
            (&[("grpc-timeout", "123456789S")], 100_000),
            (&[("grpc-timeout", "é")], 100_000),
            (&[("grpc-timeout", "3M"), ("x-request-timeout-ms", "99")], 99),
        ] {
            let call = call(headers).unwrap();
            let after = call.deadline.unwrap() - call.arrived;
            assert_eq!(after.as_millis(), millis, "{headers:?}");
        }
        assert!(call(&[("x-request-timeout-ms", "soon")]).is_err());
    }

    #[test]
    fn priorities_are_read_and_the_header_wins() {
        for (headers, class) in [
            (&[][..], Priority::Normal),
            (&[("x-priority", "Bulk")], Priority::Bulk),
            (&[("priority", "u=1, i")], Priority::Interactive),
            (&[("priority", "i, u=6")], Priority::Bulk),
            (&[("priority", "nonsense")], Priority::Normal),
            (&[("priority", "u=0"), ("x-priority", "bulk")], Priority::Bulk),
        ] {
            assert_eq!(call(headers).unwrap().class(32), class, "{headers:?}");
        }
        assert!(call(&[("x-priority", "urgent")]).is_err());
        let unsaid = Call::new(None);
        assert_eq!(unsaid.class(33), Priority::Bulk);
        let body = |value: Value| unsaid.body_priority(Some(&value)).map(|call| call.class(33));
        assert_eq!(body((-3).into()).unwrap(), Priority::Interactive);
        assert_eq!(body(0.into()).unwrap(), Priority::Normal);
        assert_eq!(body(9.into()).unwrap(), Priority::Bulk);
        assert_eq!(body("interactive".into()).unwrap(), Priority::Interactive);
        assert!(body(1.5.into()).is_err());
        let header = call(&[("x-priority", "bulk")]).unwrap();
        let both = header.body_priority(Some(&"interactive".into())).unwrap();
        assert_eq!(both.class(1), Priority::Bulk);
        assert_eq!(unsaid.oip_priority(0).class(1), Priority::Normal);
        assert_eq!(unsaid.oip_priority(1).class(99), Priority::Interactive);
    }
}
