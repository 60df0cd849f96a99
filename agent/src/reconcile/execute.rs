//! Carries out one step. Decides nothing.

use super::{local::Done, plan::Step};
use crate::runtime::{Runtime, RuntimeError};

pub(super) async fn execute<R: Runtime>(runtime: &R, step: &Step) -> Result<Done, RuntimeError> {
    match step {
        Step::Prepare { assignment } => runtime.prepare(&assignment.spec).await.map(Done::Prepared),
        Step::Start { assignment } => runtime.start(assignment).await.map(Done::Started),
        Step::Publish { ports, .. } => runtime.publish(ports).await.map(|()| Done::Nothing),
        Step::Freeze { task } => runtime.freeze(task).await.map(|()| Done::Nothing),
        Step::Thaw { task } => runtime.thaw(task).await.map(|()| Done::Nothing),
        Step::Stop { task, .. } => runtime.stop(task).await.map(|()| Done::Nothing),
        Step::Kill { task } => runtime.kill(task).await.map(|()| Done::Nothing),
        Step::Remove { task } => runtime.remove(task).await.map(|()| Done::Nothing),
        Step::Keep { task } => runtime.keep(task).await.map(Done::Kept),
        // These change the agent's own books only, which the loop that owns them has done by now.
        Step::Abandon { .. } | Step::Settle { .. } | Step::Forget { .. } => Ok(Done::Nothing),
    }
}
