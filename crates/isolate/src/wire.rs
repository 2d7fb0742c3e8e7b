//! How items and outputs cross between the processes: [`Wire`], and its implementations for common
//! types.

use crate::arena::{Reader, Writer};
use crate::error::WireError;

/// A value that crosses to the child or back.
///
/// Both sides must be of the same build of the program, or agree on the bytes. Numbers in a slice
/// are copied as one piece.
///
/// ```
/// use onelane_isolate::{Reader, Wire, WireError, Writer};
///
/// struct Row(Vec<f32>);
///
/// impl Wire for Row {
///     fn write(&self, to: &mut Writer<'_>) {
///         self.0.write(to);
///     }
///     fn read(from: &mut Reader<'_>) -> Result<Self, WireError> {
///         Vec::read(from).map(Self)
///     }
/// }
/// ```
pub trait Wire: Sized {
    /// Writes the value: at least one byte.
    fn write(&self, to: &mut Writer<'_>);

    /// Reads a value that [`write`](Self::write) has written.
    ///
    /// # Errors
    /// The bytes are not such a value. They come from another process: nothing about them may be
    /// taken for granted, and a panic here counts as a panic of the engine.
    fn read(from: &mut Reader<'_>) -> Result<Self, WireError>;

    /// Writes the values of a slice, without their number.
    fn write_slice(values: &[Self], to: &mut Writer<'_>) {
        for value in values {
            value.write(to);
        }
    }

    /// Reads `count` values.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    fn read_vec(count: usize, from: &mut Reader<'_>) -> Result<Vec<Self>, WireError> {
        // Each value takes a byte at least, so that a count out of thin air ends here.
        let left = from.remaining();
        if count > left {
            return Err(WireError::TooShort { needed: count, left });
        }
        let mut values = Vec::with_capacity(count.min(1024));
        for _ in 0..count {
            values.push(Self::read(from)?);
        }
        Ok(values)
    }
}

macro_rules! numbers {
    ($($type:ty)*) => {
        $(impl Wire for $type {
            fn write(&self, to: &mut Writer<'_>) {
                to.numbers(std::slice::from_ref(self));
            }
            fn read(from: &mut Reader<'_>) -> Result<Self, WireError> {
                from.array().map(Self::from_ne_bytes)
            }
            fn write_slice(values: &[Self], to: &mut Writer<'_>) {
                to.numbers(values);
            }
            fn read_vec(count: usize, from: &mut Reader<'_>) -> Result<Vec<Self>, WireError> {
                from.numbers(count)
            }
        })*
    };
}

numbers!(u8 u16 u32 u64 u128 usize i8 i16 i32 i64 i128 isize f32 f64);

impl Wire for bool {
    fn write(&self, to: &mut Writer<'_>) {
        to.bytes(&[u8::from(*self)]);
    }
    fn read(from: &mut Reader<'_>) -> Result<Self, WireError> {
        match u8::read(from)? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(WireError::Invalid(format!("{other} is no bool"))),
        }
    }
}

impl Wire for () {
    fn write(&self, to: &mut Writer<'_>) {
        to.bytes(&[0]);
    }
    fn read(from: &mut Reader<'_>) -> Result<Self, WireError> {
        from.array::<1>().map(drop)
    }
}

impl<W: Wire> Wire for Vec<W> {
    fn write(&self, to: &mut Writer<'_>) {
        to.length(self.len());
        W::write_slice(self, to);
    }
    fn read(from: &mut Reader<'_>) -> Result<Self, WireError> {
        let count = from.length()?;
        W::read_vec(count, from)
    }
}

impl Wire for String {
    fn write(&self, to: &mut Writer<'_>) {
        to.length(self.len());
        to.bytes(self.as_bytes());
    }
    fn read(from: &mut Reader<'_>) -> Result<Self, WireError> {
        let length = from.length()?;
        Self::from_utf8(from.numbers(length)?)
            .map_err(|error| WireError::Invalid(error.to_string()))
    }
}

impl<W: Wire> Wire for Option<W> {
    fn write(&self, to: &mut Writer<'_>) {
        self.is_some().write(to);
        if let Some(value) = self {
            value.write(to);
        }
    }
    fn read(from: &mut Reader<'_>) -> Result<Self, WireError> {
        if bool::read(from)? { W::read(from).map(Some) } else { Ok(None) }
    }
}

impl<W: Wire, E: Wire> Wire for Result<W, E> {
    fn write(&self, to: &mut Writer<'_>) {
        self.is_ok().write(to);
        match self {
            Ok(value) => value.write(to),
            Err(error) => error.write(to),
        }
    }
    fn read(from: &mut Reader<'_>) -> Result<Self, WireError> {
        if bool::read(from)? { W::read(from).map(Ok) } else { E::read(from).map(Err) }
    }
}

impl<W: Wire> Wire for Box<W> {
    fn write(&self, to: &mut Writer<'_>) {
        W::write(self, to);
    }
    fn read(from: &mut Reader<'_>) -> Result<Self, WireError> {
        W::read(from).map(Self::new)
    }
}

macro_rules! tuples {
    ($(($($name:ident)+))*) => {
        $(impl<$($name: Wire),+> Wire for ($($name,)+) {
            fn write(&self, to: &mut Writer<'_>) {
                #[allow(non_snake_case, reason = "a type's name serves as its value's")]
                let ($($name,)+) = self;
                $($name.write(to);)+
            }
            fn read(from: &mut Reader<'_>) -> Result<Self, WireError> {
                Ok(($($name::read(from)?,)+))
            }
        })*
    };
}

tuples!((A) (A B) (A B C) (A B C D) (A B C D E) (A B C D E F));

/// Implements [`Wire`] by serde, with postcard, for types that are `Serialize` and
/// `DeserializeOwned`. Large slices of numbers are better written by hand: they cross as one piece
/// then.
///
/// ```
/// #[derive(serde::Serialize, serde::Deserialize)]
/// struct Prompt {
///     text: String,
///     temperature: f32,
/// }
///
/// onelane_isolate::wire_by_serde!(Prompt);
/// ```
#[cfg(feature = "serde")]
#[macro_export]
macro_rules! wire_by_serde {
    ($($type:ty),+ $(,)?) => {
        $(impl $crate::Wire for $type {
            fn write(&self, to: &mut $crate::Writer<'_>) {
                $crate::write_serde(self, to);
            }
            fn read(from: &mut $crate::Reader<'_>) -> Result<Self, $crate::WireError> {
                $crate::read_serde(from)
            }
        })+
    };
}

/// What `wire_by_serde!` writes with.
#[cfg(feature = "serde")]
#[doc(hidden)]
pub fn write_serde<T: serde::Serialize>(value: &T, to: &mut Writer<'_>) {
    match postcard::to_stdvec(value) {
        Ok(bytes) => bytes.write(to),
        Err(error) => to.fail(WireError::Invalid(error.to_string())),
    }
}

/// What `wire_by_serde!` reads with.
#[cfg(feature = "serde")]
#[doc(hidden)]
pub fn read_serde<T: serde::de::DeserializeOwned>(from: &mut Reader<'_>) -> Result<T, WireError> {
    let bytes = Vec::<u8>::read(from)?;
    postcard::from_bytes(&bytes).map_err(|error| WireError::Invalid(error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use super::*;
    use crate::arena::Arena;

    fn crosses<W: Wire + PartialEq + Debug>(value: W) {
        let mut arena = Arena::create(1 << 20).unwrap();
        let mut writer = arena.writer();
        value.write(&mut writer);
        let length = writer.finish().unwrap();
        let mut reader = arena.reader(0, length).unwrap();
        assert_eq!(W::read(&mut reader), Ok(value));
        assert_eq!(reader.remaining(), 0);
        for cut in 0..length {
            let mut reader = arena.reader(0, cut).unwrap();
            assert!(W::read(&mut reader).is_err(), "cut at {cut} of {length}");
        }
    }

    #[test]
    fn values_cross_and_what_is_cut_off_is_an_error() {
        crosses(vec![1.0_f32, -2.5, f32::MAX]);
        crosses(vec![vec![1_u8, 2], vec![], vec![3]]);
        crosses(("text with ünïcode".to_owned(), 7_u64, vec![(); 3]));
        crosses((Some(3_i16), None::<u8>, true));
        crosses(Err::<u8, _>(Box::new("why".to_owned())));
        crosses(vec!["a".to_owned(), String::new()]);
    }

    #[test]
    fn bytes_of_another_process_are_not_trusted() {
        let mut arena = Arena::create(1 << 20).unwrap();
        let mut writer = arena.writer();
        u64::MAX.write(&mut writer);
        writer.bytes(&[0xff; 8]);
        let length = writer.finish().unwrap();
        assert!(Vec::<f32>::read(&mut arena.reader(0, length).unwrap()).is_err());
        assert!(Vec::<()>::read(&mut arena.reader(0, length).unwrap()).is_err());
        assert!(Vec::<String>::read(&mut arena.reader(0, length).unwrap()).is_err());
        assert!(bool::read(&mut arena.reader(8, 1).unwrap()).is_err());
        let mut writer = arena.writer();
        2_u64.write(&mut writer);
        writer.bytes(&[0xff; 2]);
        let length = writer.finish().unwrap();
        assert!(String::read(&mut arena.reader(0, length).unwrap()).is_err());
    }

    #[cfg(feature = "serde")]
    #[test]
    fn serde_crosses() {
        #[derive(serde::Serialize, serde::Deserialize, PartialEq, Debug)]
        struct Prompt {
            text: String,
            temperature: f32,
        }
        impl Wire for Prompt {
            fn write(&self, to: &mut Writer<'_>) {
                write_serde(self, to);
            }
            fn read(from: &mut Reader<'_>) -> Result<Self, WireError> {
                read_serde(from)
            }
        }
        crosses(Prompt { text: "hello".to_owned(), temperature: 0.5 });
    }
}
