//! [`DeviceArg`]: what `--device` names where the simulated device is offered beside the real ones.

use std::fmt;
use std::str::FromStr;

use onelane_engines::{DeviceName, DeviceNameError};
use onelane_sim::Profile;

/// What a simulated device's name begins with.
pub const SIMULATED: &str = "sim-mps";

/// A device of this machine, or a simulated one.
#[derive(Clone, Debug, PartialEq)]
pub enum DeviceArg {
    /// Hardware, through candle.
    Real(DeviceName),
    /// The simulated MPS device with the rules of a profile.
    Simulated(Profile),
}

impl DeviceArg {
    /// The seed of the schedule: the given one, or 0.
    ///
    /// # Errors
    /// When a seed was given for hardware.
    pub fn seed(&self, given: Option<u64>) -> anyhow::Result<u64> {
        match (self, given) {
            (DeviceArg::Real(name), Some(_)) => anyhow::bail!(
                "--seed chooses the schedule of a simulated device, and {name} is a real one: leave \
                 --seed out, or use --device {SIMULATED}"
            ),
            (_, seed) => Ok(seed.unwrap_or(0)),
        }
    }
}

impl fmt::Display for DeviceArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceArg::Real(name) => name.fmt(f),
            DeviceArg::Simulated(profile) => write!(f, "{SIMULATED}:{}", profile.name),
        }
    }
}

impl FromStr for DeviceArg {
    type Err = String;

    fn from_str(given: &str) -> Result<Self, String> {
        let profile = match given.strip_prefix(SIMULATED) {
            Some("") => Some(Profile::fork_2_9_1()),
            Some(rest) => match rest.strip_prefix(':') {
                Some(name) => {
                    let known = Profile::from_str(name);
                    Some(known.map_err(|unknown| format!("device {given:?}: {unknown}"))?)
                }
                None => None,
            },
            None => None,
        };
        match profile {
            Some(profile) => Ok(DeviceArg::Simulated(profile)),
            None => given.parse().map(DeviceArg::Real).map_err(|error| match error {
                DeviceNameError::Kind { given } => format!(
                    "unknown device {given:?}: use cpu, metal, metal:N, cuda, cuda:N, {SIMULATED} or \
                     {SIMULATED}:PROFILE"
                ),
                other => other.to_string(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_to_what_they_name_and_back() {
        for name in Profile::NAMES {
            let given = format!("{SIMULATED}:{name}");
            assert_eq!(given.parse::<DeviceArg>().unwrap().to_string(), given);
        }
        assert_eq!("sim-mps".parse::<DeviceArg>().unwrap().to_string(), "sim-mps:fork-2.9.1");
        assert_eq!("metal".parse::<DeviceArg>().unwrap().to_string(), "metal:0");
    }

    #[test]
    fn an_unknown_name_is_told_with_what_there_is() {
        let refused = |given: &str| given.parse::<DeviceArg>().unwrap_err();
        assert!(refused("sim-mps:2.99").contains("`2.99`; there are fork-2.9.1, upstream-2.14"));
        assert!(refused("sim-mps:").contains("``; there are fork-2.9.1"));
        assert!(refused("sim-mps2").contains("sim-mps or sim-mps:PROFILE"));
        assert!(refused("metal:x").contains("\"x\" is not a device number"));
    }
}
