//! Seccomp profiles as Docker writes them: a superset of runtime-spec's `linux.seccomp`, in which an entry may depend on
//! the container's capabilities and on the node. Pure; the node that runs the container decides what applies.

use serde::Deserialize;

/// Bytes of a profile: Docker's own has 15 KiB without blanks. It stands in the log once for each version of a spec.
pub const MAX_PROFILE: usize = 64 * 1024;

/// runtime-spec's, without SCMP_ACT_NOTIFY, which takes a listener.
const ACTIONS: [&str; 8] = [
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_KILL_THREAD",
    "SCMP_ACT_TRAP",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_TRACE",
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_LOG",
];
const OPERATORS: [&str; 7] =
    ["SCMP_CMP_NE", "SCMP_CMP_LT", "SCMP_CMP_LE", "SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_MASKED_EQ"];
const LAST_ARGUMENT: u64 = 5;

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Profile {
    pub default_action: String,
    pub default_errno_ret: Option<u32>,
    #[serde(default)]
    pub flags: Vec<String>,
    pub listener_path: Option<String>,
    #[serde(default)]
    pub syscalls: Vec<Syscalls>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Syscalls {
    #[serde(default)]
    pub names: Vec<String>,
    /// The old format's.
    #[serde(default)]
    pub name: String,
    pub action: String,
    pub errno_ret: Option<u32>,
    #[serde(default, deserialize_with = "or_null")]
    pub args: Vec<Argument>,
    #[serde(default)]
    pub includes: Condition,
    #[serde(default)]
    pub excludes: Condition,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Argument {
    pub index: u64,
    pub value: u64,
    #[serde(default)]
    pub value_two: u64,
    pub op: String,
}

/// All of `caps` and `min_kernel`, one of `arches`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Condition {
    #[serde(deserialize_with = "or_null")]
    pub caps: Vec<String>,
    /// In Go's words: `amd64`.
    #[serde(deserialize_with = "or_null")]
    pub arches: Vec<String>,
    pub min_kernel: Option<String>,
}

fn or_null<'de, T: Deserialize<'de>, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::<Vec<T>>::deserialize(from)?.unwrap_or_default())
}

impl Profile {
    /// # Errors
    /// In words, what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() > MAX_PROFILE {
            return Err(format!("it has {} bytes; {MAX_PROFILE} are allowed", text.len()));
        }
        let profile: Self = serde_json::from_str(text).map_err(|error| format!("it is no seccomp profile: {error}"))?;
        if profile.listener_path.as_ref().is_some_and(|path| !path.is_empty()) {
            return Err("a listener of system calls (listenerPath, SCMP_ACT_NOTIFY) is not supported".to_owned());
        }
        profile.check_words()?;
        Ok(profile)
    }

    /// What every node would refuse.
    fn check_words(&self) -> Result<(), String> {
        let actions = self.syscalls.iter().map(|calls| &calls.action).chain([&self.default_action]);
        let args = || self.syscalls.iter().flat_map(|calls| &calls.args);
        for (field, word, known) in actions
            .map(|action| ("action", action, ACTIONS.as_slice()))
            .chain(args().map(|arg| ("op", &arg.op, OPERATORS.as_slice())))
        {
            if !known.contains(&word.as_str()) {
                return Err(format!("there is no {field} {word:?}: use one of {}", known.join(", ")));
            }
        }
        match args().find(|arg| arg.index > LAST_ARGUMENT) {
            Some(arg) => Err(format!("system calls have no argument {}, only 0 to {LAST_ARGUMENT}", arg.index)),
            None => Ok(()),
        }
    }

    /// The same profile without blanks, for the spec; bounded after that.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn compact(text: &str) -> Result<String, String> {
        let value: serde_json::Value = serde_json::from_str(text).map_err(|error| format!("it is no JSON: {error}"))?;
        let text = value.to_string();
        Self::parse(&text).map(|_| text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_of_both_formats_are_read_and_others_are_refused() {
        let new = r#"{"defaultAction": "SCMP_ACT_ERRNO", "archMap": [{"architecture": "SCMP_ARCH_X86_64"}],
            "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": null, "comment": "",
                          "includes": {"caps": ["CAP_SYS_ADMIN"], "minKernel": "4.8"}, "excludes": {}}]}"#;
        let old = r#"{"defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"name": "clone", "action": "SCMP_ACT_ERRNO",
                          "args": [{"index": 0, "value": 1, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]}]}"#;
        assert_eq!(Profile::parse(new).unwrap().syscalls[0].includes.min_kernel.as_deref(), Some("4.8"));
        assert_eq!(Profile::parse(old).unwrap().syscalls[0].name, "clone");
        assert!(!Profile::compact(new).unwrap().contains('\n'));
        let argument = |index: u8, op: &str| {
            format!(
                r#"{{"defaultAction": "SCMP_ACT_LOG", "syscalls": [{{"name": "clone", "action": "SCMP_ACT_ALLOW",
                    "args": [{{"index": {index}, "value": 1, "op": "{op}"}}]}}]}}"#
            )
        };
        for (bad, why) in [
            ("[]", "no seccomp profile"),
            ("{}", "missing field `defaultAction`"),
            (r#"{"defaultAction": "x", "listenerPath": "/l"}"#, "listener"),
            (r#"{"defaultAction": "SCMP_ACT_FOO"}"#, "no action \"SCMP_ACT_FOO\": use one of SCMP_ACT_KILL, "),
            (r#"{"defaultAction": "SCMP_ACT_LOG", "syscalls": [{"action": "allow"}]}"#, "no action \"allow\""),
            (&argument(0, "EQ"), "no op \"EQ\""),
            (&argument(6, "SCMP_CMP_EQ"), "no argument 6, only 0 to 5"),
            (&format!("\"{}\"", "x".repeat(MAX_PROFILE)), "are allowed"),
        ] {
            let error = Profile::parse(bad).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}
