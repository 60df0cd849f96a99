//! The keys that leave a terminal, found among what is typed. Pure.

use bytes::{BufMut, Bytes, BytesMut};

/// More is not typed by mistake, nor by intention.
const LONGEST: usize = 16;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DetachKeys {
    keys: Vec<u8>,
    /// How many of them were typed last, and are held back.
    typed: usize,
}

impl DetachKeys {
    /// As docker writes them: `ctrl-p,ctrl-q`, `ctrl-a,d`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = |key: &str| {
            format!(
                "{key:?} is no key: write a letter, or ctrl- and a letter or one of @ [ \\ ] ^ _, with commas between"
            )
        };
        let key = |key: &str| match (key.as_bytes(), key.strip_prefix("ctrl-").map(str::as_bytes)) {
            ([letter], _) if letter.is_ascii_alphabetic() => Ok(*letter),
            (_, Some([letter])) if letter.is_ascii_alphabetic() => Ok(letter.to_ascii_lowercase() - b'a' + 1),
            (_, Some([b'@'])) => Ok(0),
            // As in ASCII, which has them behind the letters.
            (_, Some([sign @ (b'[' | b'\\' | b']' | b'^' | b'_')])) => Ok(sign - b'@'),
            _ => Err(wrong(key)),
        };
        let keys = text.split(',').map(key).collect::<Result<Vec<u8>, _>>()?;
        if keys.len() > LONGEST {
            return Err(format!("{LONGEST} keys are enough"));
        }
        Ok(Self { keys, typed: 0 })
    }

    /// What goes on to the program, and whether the keys were typed. What may be their beginning is held back.
    pub(super) fn filter(&mut self, typed: &[u8]) -> (Bytes, bool) {
        let mut passed = BytesMut::with_capacity(typed.len() + self.typed);
        for byte in typed {
            if *byte == self.keys[self.typed] {
                self.typed += 1;
                if self.typed == self.keys.len() {
                    self.typed = 0;
                    return (passed.freeze(), true);
                }
                continue;
            }
            passed.put_slice(&self.keys[..self.typed]);
            self.typed = 0;
            if *byte == self.keys[0] {
                self.typed = 1;
            } else {
                passed.put_u8(*byte);
            }
        }
        (passed.freeze(), false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_written_as_docker_writes_them() {
        let keys = |text: &str| DetachKeys::parse(text).map(|keys| keys.keys);
        assert_eq!(keys("ctrl-p,ctrl-q"), Ok(vec![16, 17]));
        assert_eq!(keys("ctrl-a,d"), Ok(vec![1, b'd']));
        assert_eq!(keys("ctrl-@,ctrl-[,ctrl-\\,ctrl-],ctrl-^,ctrl-_"), Ok(vec![0, 27, 28, 29, 30, 31]));
        for wrong in ["", "ctrl-", "ctrl-1", "p,", "pq", "strg-p", "é", &"a,".repeat(20)] {
            assert!(keys(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn they_are_found_however_they_come_and_nothing_else_is_lost() {
        let told = |keys: &str, pieces: &[&[u8]]| {
            let mut keys = DetachKeys::parse(keys).expect("keys");
            let (mut passed, mut left) = (Vec::new(), false);
            for piece in pieces {
                let (more, detached) = keys.filter(piece);
                passed.extend_from_slice(&more);
                left |= detached;
            }
            (String::from_utf8(passed).expect("text"), left)
        };
        assert_eq!(told("ctrl-p,ctrl-q", &[b"ls\x10\x11more"]), ("ls".to_owned(), true));
        assert_eq!(told("ctrl-p,ctrl-q", &[b"ls\x10", b"\x11"]), ("ls".to_owned(), true));
        assert_eq!(told("ctrl-p,ctrl-q", &[b"a\x10b", b"\x10", b"\x10\x11"]), ("a\x10b\x10".to_owned(), true));
        assert_eq!(told("ctrl-p,ctrl-q", &[b"\x11\x10"]), ("\x11".to_owned(), false));
        assert_eq!(told("x", &[b"a", b"x"]), ("a".to_owned(), true));
        assert_eq!(told("a,a,b", &[b"aab"]), (String::new(), true));
    }
}
