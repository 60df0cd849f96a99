//! Driving a cluster as its users do: by `rctl`, with waiting for what it says.

use std::{
    fs,
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::{self, Command},
};

use serde_json::Value;

use crate::wait;

/// How a command ended and all that it printed.
#[derive(Debug)]
pub struct Output {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl From<process::Output> for Output {
    fn from(output: process::Output) -> Self {
        Self {
            code: output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap_or(0)),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

pub trait Drive {
    /// A command line of `rctl` against this cluster.
    fn rctl_command(&self, arguments: &[&str]) -> Command;

    /// Where specs are written to.
    fn spec_file(&self) -> PathBuf;

    /// What the daemons said, for a test that fails.
    fn logs(&self) -> String;

    fn rctl(&self, arguments: &[&str]) -> Output {
        self.rctl_command(arguments).output().expect("rctl can be started").into()
    }

    /// The same, which must succeed.
    #[track_caller]
    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.rctl(arguments);
        assert_eq!(output.code, 0, "rctl {arguments:?} failed\n{}{}\n{}", output.stdout, output.stderr, self.logs());
        output.stdout
    }

    /// Writes a spec file and applies it, waiting until it converged.
    #[track_caller]
    fn apply(&self, spec: &str) -> String {
        let file = self.spec(spec);
        self.ok(&["apply", "--timeout=60s", &file.to_string_lossy()])
    }

    fn spec(&self, spec: &str) -> PathBuf {
        let file = self.spec_file();
        fs::write(&file, spec).expect("the folder is ours");
        file
    }

    /// `rctl ps -o json`, the current task of each slot.
    #[track_caller]
    fn tasks(&self) -> Vec<Value> {
        self.json(&["ps", "-o", "json"])
    }

    #[track_caller]
    fn all_tasks(&self) -> Vec<Value> {
        self.json(&["ps", "-a", "-o", "json"])
    }

    #[track_caller]
    fn json(&self, arguments: &[&str]) -> Vec<Value> {
        serde_json::from_str(&self.ok(arguments)).expect("rctl prints JSON")
    }

    /// The current tasks, once all of them satisfy the predicate and there are `count`.
    #[track_caller]
    fn until_tasks(&self, what: &str, count: usize, predicate: impl Fn(&Value) -> bool) -> Vec<Value> {
        wait::until(what, || {
            let tasks = self.tasks();
            if tasks.len() == count && tasks.iter().all(&predicate) { Ok(tasks) } else { Err(tasks) }
        })
    }

    #[track_caller]
    fn until_running(&self, count: usize) -> Vec<Value> {
        self.until_tasks(&format!("{count} running tasks"), count, is_running)
    }
}

/// Runs, is well, and is wanted so: a task that is about to be stopped does not count.
pub fn is_running(task: &Value) -> bool {
    task["state"] == "Running" && task["desired"] == "run" && matches!(task["health"].as_str(), None | Some("healthy"))
}

pub fn pid(task: &Value) -> u32 {
    task["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).unwrap_or_else(|| panic!("no pid: {task:#}"))
}
