//! Which devices a container may use: the rules of `linux.resources.devices`, and their form for v1. Pure.
//!
//! A later rule wins over an earlier one. v1 keeps a list of exceptions instead, from which a rule only removes what is
//! exactly like it, and ignores others without a word; such rules are refused here.
//!
//! What every container may use, as the runtime specification lists it, is allowed after the rule that denies
//! everything and before the next that denies anything, so that a config's own rules win and come first. So is making
//! nodes, by which nothing can be opened.
//!
//! Sources: the kernel's Documentation/admin-guide/cgroup-v1/devices.rst; the runtime specification, "Default Devices".

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use super::resources::{Absent, Write};
use crate::error::StartError;

/// `None` is any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    pub allow: bool,
    pub kind: Option<Kind>,
    pub major: Option<u32>,
    pub minor: Option<u32>,
    pub access: Access,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Block,
    Char,
}

/// A set of the bits below, with the kernel's values for programs (`BPF_DEVCG_ACC_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access(pub u32);

impl Access {
    pub const MAKE: Self = Self(1);
    pub const READ: Self = Self(2);
    pub const WRITE: Self = Self(4);
    pub const ALL: Self = Self(7);

    fn letters(self) -> String {
        let letters = [(Self::READ, 'r'), (Self::WRITE, 'w'), (Self::MAKE, 'm')];
        letters.into_iter().filter(|(bit, _)| self.0 & bit.0 != 0).map(|(_, letter)| letter).collect()
    }
}

impl Rule {
    /// Says it of every device, so that nothing before it counts.
    pub fn is_whole(&self) -> bool {
        self.is_like(&Rule { allow: self.allow, kind: None, major: None, minor: None, access: Access::ALL })
            && self.access == Access::ALL
    }

    fn is_like(&self, other: &Rule) -> bool {
        (self.kind, self.major, self.minor) == (other.kind, other.major, other.minor)
    }

    /// Whether some opening of some device is meant by both.
    fn meets(&self, other: &Rule) -> bool {
        fn meet<T: PartialEq>(one: Option<T>, other: Option<T>) -> bool {
            one.is_none() || other.is_none() || one == other
        }
        let opening = Access::READ.0 | Access::WRITE.0;
        meet(self.kind, other.kind)
            && meet(self.major, other.major)
            && meet(self.minor, other.minor)
            && self.access.0 & other.access.0 & opening != 0
    }

    fn line(&self, kind: Kind) -> String {
        let kind = match kind {
            Kind::Block => 'b',
            Kind::Char => 'c',
        };
        let number = |number: Option<u32>| number.map_or("*".to_owned(), |number| number.to_string());
        format!("{kind} {}:{} {}", number(self.major), number(self.minor), self.access.letters())
    }
}

/// In the config's order, with the defaults. None for a config without rules: everything is as in the group above.
pub fn rules(config: &[LinuxDeviceCgroup]) -> Result<Vec<Rule>, StartError> {
    let mut rules = config.iter().map(rule).collect::<Result<Vec<_>, _>>()?;
    if let Some(last) = rules.iter().rposition(Rule::is_whole)
        && !rules[last].allow
    {
        let place = rules[last + 1..].iter().position(|rule| !rule.allow).map_or(rules.len(), |next| last + 1 + next);
        let defaults: Vec<_> = defaults().filter(|default| !rules[last..].contains(default)).collect();
        rules.splice(place..place, defaults);
    }
    Ok(rules)
}

fn defaults() -> impl Iterator<Item = Rule> {
    const NODES: [(Option<Kind>, Option<u32>, Option<u32>); 2] =
        [(Some(Kind::Char), None, None), (Some(Kind::Block), None, None)];
    // null, zero, full, random, urandom; tty, console, ptmx; the terminals of devpts.
    const USED: [(u32, Option<u32>); 9] = [
        (1, Some(3)),
        (1, Some(5)),
        (1, Some(7)),
        (1, Some(8)),
        (1, Some(9)),
        (5, Some(0)),
        (5, Some(1)),
        (5, Some(2)),
        (136, None),
    ];
    let made = NODES.map(|(kind, major, minor)| Rule { allow: true, kind, major, minor, access: Access::MAKE });
    let used = USED.map(|(major, minor)| Rule {
        allow: true,
        kind: Some(Kind::Char),
        major: Some(major),
        minor,
        access: Access::ALL,
    });
    made.into_iter().chain(used)
}

fn rule(config: &LinuxDeviceCgroup) -> Result<Rule, StartError> {
    let bad = |reason: String| StartError::impossible("limiting by linux.resources.devices", reason);
    let kind = match config.typ() {
        None | Some(LinuxDeviceType::A) => None,
        Some(LinuxDeviceType::B) => Some(Kind::Block),
        Some(LinuxDeviceType::C) => Some(Kind::Char),
        Some(other) => return Err(bad(format!("a rule's type is a, b or c, not {:?}", other.as_str()))),
    };
    // Many programs write -1 for any.
    let number = |number: Option<i64>| match number {
        None | Some(..0) => Ok(None),
        Some(number) => u32::try_from(number).map(Some).map_err(|_| bad(format!("{number} is no device's number"))),
    };
    let mut access = 0;
    for letter in config.access().iter().flat_map(|access| access.chars()) {
        access |= match letter {
            'r' => Access::READ.0,
            'w' => Access::WRITE.0,
            'm' => Access::MAKE.0,
            other => return Err(bad(format!("a rule's access is made of r, w and m, not {other:?}"))),
        };
    }
    let access = if access == 0 { Access::ALL } else { Access(access) };
    Ok(Rule { allow: config.allow(), kind, major: number(config.major())?, minor: number(config.minor())?, access })
}

/// What v1 is told, in order.
pub fn v1_writes(rules: &[Rule]) -> Result<Vec<Write>, StartError> {
    refuse_what_v1_ignores(rules)?;
    let mut writes = Vec::new();
    for rule in split_kinds(rules) {
        let file = if rule.allow { "devices.allow" } else { "devices.deny" };
        let value = rule.kind.map_or("a".to_owned(), |kind| rule.line(kind));
        writes.push(Write { controller: "devices".to_owned(), file: file.to_owned(), value, absent: Absent::Refuse });
    }
    Ok(writes)
}

/// v1 takes "any kind" for "everything", whatever follows.
fn split_kinds(rules: &[Rule]) -> Vec<Rule> {
    let mut split = Vec::new();
    for rule in rules {
        if rule.kind.is_some() || rule.is_whole() {
            split.push(*rule);
        } else {
            split.extend([Kind::Block, Kind::Char].map(|kind| Rule { kind: Some(kind), ..*rule }));
        }
    }
    split
}

fn refuse_what_v1_ignores(rules: &[Rule]) -> Result<(), StartError> {
    let mut otherwise = true;
    let mut exceptions: Vec<Rule> = Vec::new();
    for rule in split_kinds(rules) {
        if rule.is_whole() {
            otherwise = rule.allow;
            exceptions.clear();
        } else if rule.allow != otherwise {
            exceptions.push(rule);
        } else if let Some(exception) = exceptions.iter().find(|e| e.meets(&rule) && !e.is_like(&rule)) {
            let line = |rule: &Rule| rule.kind.map_or(String::new(), |kind| rule.line(kind));
            let reason = format!(
                "control groups v1, which this host uses, cannot take {:?} back out of {:?}: name exactly the devices \
                 that are meant",
                line(&rule),
                line(exception)
            );
            return Err(StartError::impossible("limiting by linux.resources.devices", reason));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: &str) -> Vec<LinuxDeviceCgroup> {
        serde_json::from_str(json).unwrap()
    }

    fn lines(json: &str) -> Result<Vec<String>, StartError> {
        let writes = v1_writes(&rules(&config(json))?)?;
        Ok(writes.into_iter().map(|write| format!("{} {}", write.file, write.value)).collect())
    }

    #[test]
    fn after_a_denial_of_all_the_default_devices_may_be_used() {
        let lines = lines(r#"[{"allow": false, "access": "rwm"}]"#).unwrap();
        assert_eq!(
            lines[..4],
            ["devices.deny a", "devices.allow c *:* m", "devices.allow b *:* m", "devices.allow c 1:3 rwm"]
        );
        assert_eq!(lines.last().unwrap(), "devices.allow c 136:* rwm");
    }

    #[test]
    fn a_configs_own_rules_come_in_its_order_and_its_denials_win() {
        let allow = r#"{"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rwm"}"#;
        let deny = r#"{"allow": false, "type": "c", "major": 1, "minor": 3, "access": "rwm"}"#;
        let lines = lines(&format!(r#"[{{"allow": false}}, {allow}, {deny}]"#)).unwrap();
        assert_eq!(lines[..3], ["devices.deny a", "devices.allow c 10:229 rwm", "devices.allow c *:* m"]);
        assert_eq!(lines.last().unwrap(), "devices.deny c 1:3 rwm");
    }

    #[test]
    fn a_default_that_a_config_says_itself_is_said_once() {
        let json = r#"[{"allow": false}, {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"}]"#;
        let lines = lines(json).unwrap();
        assert_eq!(lines.iter().filter(|line| *line == "devices.allow c 1:3 rwm").count(), 1);
    }

    #[test]
    fn rules_without_a_denial_of_all_get_no_defaults() {
        let json =
            r#"[{"allow": true, "type": "a"}, {"allow": false, "type": "b", "major": 8, "minor": -1, "access": "w"}]"#;
        assert_eq!(lines(json).unwrap(), ["devices.allow a", "devices.deny b 8:* w"]);
        assert_eq!(rules(&[]).unwrap(), []);
    }

    #[test]
    fn any_kind_of_some_numbers_is_said_for_each_kind() {
        let json = r#"[{"allow": true, "type": "a", "major": 10, "minor": 200, "access": "rw"}]"#;
        assert_eq!(lines(json).unwrap(), ["devices.allow b 10:200 rw", "devices.allow c 10:200 rw"]);
    }

    #[test]
    fn a_rule_that_v1_would_ignore_is_refused_and_one_that_it_heeds_is_not() {
        let part = r#"[{"allow": false}, {"allow": true, "type": "c", "major": 10, "access": "rw"},
                       {"allow": false, "type": "c", "major": 10, "minor": 200, "access": "rw"}]"#;
        let error = lines(part).unwrap_err().to_string();
        assert!(error.contains(r#"cannot take "c 10:200 rw" back out of "c 10:* rw""#), "{error}");
        let same = r#"[{"allow": false}, {"allow": false, "type": "c", "major": 1, "minor": 3, "access": "w"}]"#;
        assert_eq!(lines(same).unwrap().last().unwrap(), "devices.deny c 1:3 w");
        // Making nodes is allowed for all; that it stays so for these opens nothing.
        let made = r#"[{"allow": false}, {"allow": false, "type": "c", "major": 10, "minor": 200}]"#;
        assert_eq!(lines(made).unwrap().last().unwrap(), "devices.deny c 10:200 rwm");
    }

    #[test]
    fn rules_that_mean_nothing_are_refused() {
        for bad in [r#"[{"allow": true, "type": "p"}]"#, r#"[{"allow": true, "access": "x"}]"#] {
            assert!(matches!(rules(&config(bad)), Err(StartError::Impossible { .. })), "{bad}");
        }
    }
}
