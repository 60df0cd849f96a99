//! Wire messages to domain types and back: the one place where what came from outside is checked for its form.
//!
//! Towards the wire nothing can fail (`From`). From the wire (`TryFrom`) a missing part, an unknown enum value, a
//! malformed name or a number out of range is a [`ConvertError`] that names the field. Whether a well-formed spec makes
//! sense is decided elsewhere.

mod cause;
mod kernel;
mod node;
mod report;
mod rights;
mod session;
mod spec;
mod task;

#[cfg(test)]
mod tests;

use std::{net::Ipv4Addr, time::Duration};

use crate::{
    id::{InvalidId, Version},
    time::Timestamp,
};

/// A message whose form is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("field {field}: {problem}")]
pub struct ConvertError {
    pub field: String,
    pub problem: String,
}

impl ConvertError {
    fn new(field: &str, problem: impl ToString) -> Self {
        Self { field: field.to_owned(), problem: problem.to_string() }
    }

    fn missing(field: &str) -> Self {
        Self::new(field, "is missing")
    }

    /// The same error seen from the message that holds the field's message.
    fn within(self, outer: &str) -> Self {
        Self { field: format!("{outer}.{}", self.field), ..self }
    }
}

/// A part that must be there, converted.
fn required<W, D: TryFrom<W, Error = ConvertError>>(field: &str, value: Option<W>) -> Result<D, ConvertError> {
    value.ok_or_else(|| ConvertError::missing(field)).and_then(|value| nested(field, value))
}

fn nested<W, D: TryFrom<W, Error = ConvertError>>(field: &str, value: W) -> Result<D, ConvertError> {
    D::try_from(value).map_err(|error| error.within(field))
}

fn optional<W, D: TryFrom<W, Error = ConvertError>>(field: &str, value: Option<W>) -> Result<Option<D>, ConvertError> {
    value.map(|value| nested(field, value)).transpose()
}

fn list<W, D: TryFrom<W, Error = ConvertError>>(field: &str, values: Vec<W>) -> Result<Vec<D>, ConvertError> {
    values.into_iter().enumerate().map(|(i, value)| nested(&format!("{field}[{i}]"), value)).collect()
}

fn name<T: std::str::FromStr<Err = InvalidId>>(field: &str, value: &str) -> Result<T, ConvertError> {
    value.parse().map_err(|error: InvalidId| ConvertError::new(field, error))
}

fn address(field: &str, value: &str) -> Result<Ipv4Addr, ConvertError> {
    value.parse().map_err(|_| ConvertError::new(field, format!("{value:?} is not an IPv4 address")))
}

fn port(field: &str, value: u32) -> Result<u16, ConvertError> {
    u16::try_from(value)
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(|| ConvertError::new(field, format!("{value} is not a port: use 1 to 65535")))
}

fn micros(value: Duration) -> u64 {
    u64::try_from(value.as_micros()).unwrap_or(u64::MAX)
}

impl From<Version> for u64 {
    fn from(value: Version) -> u64 {
        value.0
    }
}

impl From<Timestamp> for u64 {
    fn from(value: Timestamp) -> u64 {
        value.0
    }
}

/// An enum of the wire with its domain twin, both ways.
macro_rules! twin_enum {
    ($wire:ty, $domain:ty, $field:literal, { $($w:ident <=> $d:ident),+ $(,)? }) => {
        impl From<$domain> for $wire {
            fn from(value: $domain) -> Self {
                match value { $(<$domain>::$d => <$wire>::$w,)+ }
            }
        }

        impl TryFrom<$wire> for $domain {
            type Error = $crate::convert::ConvertError;
            fn try_from(value: $wire) -> Result<Self, Self::Error> {
                match value {
                    $(<$wire>::$w => Ok(<$domain>::$d),)+
                    <$wire>::Unspecified => Err($crate::convert::ConvertError::missing($field)),
                }
            }
        }
    };
}
use twin_enum;

/// An enum field as the wire carries it: a number that may be unknown to this version.
fn enumeration<W: TryFrom<i32>, D: TryFrom<W, Error = ConvertError>>(
    field: &str,
    value: i32,
) -> Result<D, ConvertError> {
    let known = W::try_from(value)
        .map_err(|_| ConvertError::new(field, format!("value {value} is not known to this version of Roster")))?;
    D::try_from(known)
}
