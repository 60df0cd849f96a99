//! What people are told: services, plans, events, images, log lines.

use super::{ConvertError, enumeration, list, name, optional, required, twin_enum};
use crate::{
    id::Version,
    report::{
        Event, FieldChange, ImageInfo, LogLine, LogStream, ServiceAction, ServicePlan, ServiceView, SlotAction,
        SlotPlan, StackPlan, Subject,
    },
    time::Timestamp,
    wire,
};

twin_enum!(wire::service_plan::Action, ServiceAction, "action", {
    Create <=> Create, Update <=> Update, Remove <=> Remove, Unchanged <=> Unchanged, NotInFile <=> NotInFile,
});
twin_enum!(wire::slot_plan::Action, SlotAction, "action", {
    Keep <=> Keep, Start <=> Start, Replace <=> Replace, Stop <=> Stop,
});
twin_enum!(wire::log_line::Stream, LogStream, "stream", { Stdout <=> Stdout, Stderr <=> Stderr });

impl From<ServiceView> for wire::ServiceView {
    fn from(view: ServiceView) -> Self {
        Self {
            id: view.id.into(),
            spec: Some(view.spec.into()),
            version: view.version.into(),
            spec_version: view.spec_version.into(),
            ports: view.ports.into_iter().map(Into::into).collect(),
            wanted: view.wanted,
            up: view.up,
            updated: view.updated,
            finished: view.finished,
            removing: view.removing,
            converged: view.converged,
            waits: view.waits,
            created: view.created.into(),
            updated_at: view.updated_at.into(),
            one_off: view.one_off.map(Into::into),
        }
    }
}

impl TryFrom<wire::ServiceView> for ServiceView {
    type Error = ConvertError;
    fn try_from(view: wire::ServiceView) -> Result<Self, ConvertError> {
        Ok(Self {
            id: name("id", &view.id)?,
            spec: required("spec", view.spec)?,
            version: Version(view.version),
            spec_version: Version(view.spec_version),
            ports: list("ports", view.ports)?,
            wanted: view.wanted,
            up: view.up,
            updated: view.updated,
            finished: view.finished,
            removing: view.removing,
            converged: view.converged,
            waits: view.waits,
            created: Timestamp(view.created),
            updated_at: Timestamp(view.updated_at),
            one_off: view.one_off.map(|of| name("one_off", &of)).transpose()?,
        })
    }
}

impl From<StackPlan> for wire::StackPlan {
    fn from(plan: StackPlan) -> Self {
        Self {
            stack: plan.stack.into(),
            base: plan.base.into(),
            services: plan.services.into_iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<wire::StackPlan> for StackPlan {
    type Error = ConvertError;
    fn try_from(plan: wire::StackPlan) -> Result<Self, ConvertError> {
        Ok(Self {
            stack: name("stack", &plan.stack)?,
            base: Version(plan.base),
            services: list("services", plan.services)?,
        })
    }
}

impl From<ServicePlan> for wire::ServicePlan {
    fn from(plan: ServicePlan) -> Self {
        Self {
            service: plan.service.into(),
            action: wire::service_plan::Action::from(plan.action).into(),
            fields: plan
                .fields
                .into_iter()
                .map(|FieldChange { path, before, after }| wire::FieldChange { path, before, after })
                .collect(),
            slots: plan.slots.into_iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<wire::ServicePlan> for ServicePlan {
    type Error = ConvertError;
    fn try_from(plan: wire::ServicePlan) -> Result<Self, ConvertError> {
        Ok(Self {
            service: name("service", &plan.service)?,
            action: enumeration::<wire::service_plan::Action, _>("action", plan.action)?,
            fields: plan
                .fields
                .into_iter()
                .map(|wire::FieldChange { path, before, after }| FieldChange { path, before, after })
                .collect(),
            slots: list("slots", plan.slots)?,
        })
    }
}

impl From<SlotPlan> for wire::SlotPlan {
    fn from(plan: SlotPlan) -> Self {
        Self {
            slot: Some(plan.slot.into()),
            action: wire::slot_plan::Action::from(plan.action).into(),
            node: plan.node.map(Into::into),
            cause: plan.cause.map(Into::into),
        }
    }
}

impl TryFrom<wire::SlotPlan> for SlotPlan {
    type Error = ConvertError;
    fn try_from(plan: wire::SlotPlan) -> Result<Self, ConvertError> {
        Ok(Self {
            slot: required("slot", plan.slot)?,
            action: enumeration::<wire::slot_plan::Action, _>("action", plan.action)?,
            node: plan.node.map(|node| name("node", &node)).transpose()?,
            cause: optional("cause", plan.cause)?,
        })
    }
}

impl From<Event> for wire::Event {
    fn from(event: Event) -> Self {
        Self {
            version: event.version.into(),
            at: event.at.into(),
            subject: Some(event.subject.into()),
            message: event.message,
            cause: event.cause.map(Into::into),
        }
    }
}

impl TryFrom<wire::Event> for Event {
    type Error = ConvertError;
    fn try_from(event: wire::Event) -> Result<Self, ConvertError> {
        Ok(Self {
            version: Version(event.version),
            at: Timestamp(event.at),
            subject: required("subject", event.subject)?,
            message: event.message,
            cause: optional("cause", event.cause)?,
        })
    }
}

impl From<Subject> for wire::Subject {
    fn from(subject: Subject) -> Self {
        use wire::subject::{Kind, TaskSubject};
        Self {
            kind: Some(match subject {
                Subject::Stack { stack } => Kind::Stack(stack.into()),
                Subject::Service { service } => Kind::Service(service.into()),
                Subject::Task { task, service, slot } => {
                    Kind::Task(TaskSubject { task: task.into(), service: service.into(), slot: Some(slot.into()) })
                }
                Subject::Node { node } => Kind::Node(node.into()),
                Subject::Controller { controller } => Kind::Controller(controller.into()),
                Subject::Cluster => Kind::Cluster(true),
            }),
        }
    }
}

impl TryFrom<wire::Subject> for Subject {
    type Error = ConvertError;
    fn try_from(subject: wire::Subject) -> Result<Self, ConvertError> {
        use wire::subject::Kind;
        Ok(match subject.kind.ok_or_else(|| ConvertError::missing("kind"))? {
            Kind::Stack(stack) => Subject::Stack { stack: name("stack", &stack)? },
            Kind::Service(service) => Subject::Service { service: name("service", &service)? },
            Kind::Task(task) => Subject::Task {
                task: name("task", &task.task)?,
                service: name("service", &task.service)?,
                slot: required("slot", task.slot)?,
            },
            Kind::Node(node) => Subject::Node { node: name("node", &node)? },
            Kind::Controller(controller) => Subject::Controller { controller: name("controller", &controller)? },
            Kind::Cluster(_) => Subject::Cluster,
        })
    }
}

impl From<ImageInfo> for wire::ImageInfo {
    fn from(image: ImageInfo) -> Self {
        Self {
            node: image.node.into(),
            id: image.id,
            names: image.names,
            size: image.size,
            created: image.created,
            labels: image.labels,
        }
    }
}

impl TryFrom<wire::ImageInfo> for ImageInfo {
    type Error = ConvertError;
    fn try_from(image: wire::ImageInfo) -> Result<Self, ConvertError> {
        Ok(Self {
            node: name("node", &image.node)?,
            id: image.id,
            names: image.names,
            size: image.size,
            created: image.created,
            labels: image.labels,
        })
    }
}

impl From<LogLine> for wire::LogLine {
    fn from(line: LogLine) -> Self {
        Self {
            task: line.task.into(),
            name: line.name,
            nanos: line.nanos,
            stream: wire::log_line::Stream::from(line.stream).into(),
            line: line.line.into(),
            partial: line.partial,
        }
    }
}

impl TryFrom<wire::LogLine> for LogLine {
    type Error = ConvertError;
    fn try_from(line: wire::LogLine) -> Result<Self, ConvertError> {
        Ok(Self {
            task: name("task", &line.task)?,
            name: line.name,
            nanos: line.nanos,
            stream: enumeration::<wire::log_line::Stream, _>("stream", line.stream)?,
            line: line.line.into(),
            partial: line.partial,
        })
    }
}
