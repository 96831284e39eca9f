//! From the file's text: fsl-mc containers and what is in them.

use vfiod_fsl_mc::Kind;

use crate::nearest::suggestion;
use crate::reader::{Everything, Names, Reader, Taken};
use crate::section::{At, Section};
use crate::types::{ContainerConfig, ObjectConfig};

impl Reader<'_> {
    pub(super) fn container<'n>(
        &self,
        name: At<&'n str>,
        container: Section<'n>,
        all: &mut Everything<'_, 'n>,
    ) -> Option<ContainerConfig> {
        self.one_name(&name, &container, all.names);
        let id = self.number(&container, "write the container's number");
        if let Some(id) = &id
            && let Some(other) = all.numbers.take(id.value, &id.span, &container.path)
        {
            let what = format!("container {} is {} already", id.value, self.at(&other));
            let help = "give each container its own number".to_owned();
            container.wrong("id", id.span.clone(), what, help);
        }
        let outer = container.string("inside");
        let inside = outer.and_then(|outer| outside(name.value, &container, &outer, all));
        let socket = self.socket(&container, all.sockets);
        let mut taken = Taken::default();
        let mut objects = Vec::new();
        for (name, section) in container.named_sections("object") {
            self.one_name(&name, &section, all.names);
            objects.extend(self.object(name, section, &mut taken, all.sockets));
        }
        container.finish();
        Some(ContainerConfig {
            name: name.value.to_owned(),
            id: id?.value,
            inside,
            socket: socket?,
            objects,
        })
    }

    fn object(
        &self,
        name: At<&str>,
        object: Section<'_>,
        taken: &mut Taken<(Kind, u32)>,
        sockets: &mut Taken<String>,
    ) -> Option<ObjectConfig> {
        let kinds = Kind::OBJECTS.map(|kind| (kind.name(), kind));
        let kind = object.choice("kind", &kinds);
        if !object.has("kind") {
            let known = Kind::OBJECTS.map(Kind::name).join(", ");
            object.missing("kind", format!("say what it is: {known}"));
        }
        let id = self.number(&object, "write the object's number among those of its kind");
        if let (Some(kind), Some(id)) = (kind, &id)
            && let Some(other) = taken.take((kind, id.value), &id.span, &object.path)
        {
            let what = format!("{kind}.{} is {} already", id.value, self.at(&other));
            let help = "give each object of a kind its own number".to_owned();
            object.wrong("id", id.span.clone(), what, help);
        }
        let socket = self.socket(&object, sockets);
        object.finish();
        let (name, id) = (name.value.to_owned(), id?.value);
        Some(ObjectConfig { name, kind: kind?, id, socket: socket? })
    }

    fn number(&self, section: &Section<'_>, help: &str) -> Option<At<u32>> {
        let id = section.integer("id", 0..=u64::from(u32::MAX));
        if !section.has("id") {
            section.missing("id", help);
        }
        id.map(|id| At { value: id.value as u32, span: id.span })
    }

    /// Devices, containers and objects are all devices, with names of their own.
    fn one_name<'n>(&self, name: &At<&'n str>, section: &Section<'_>, names: &mut Names<'n>) {
        if let Some(other) = names.iter().find(|other| other.value == name.value) {
            let what = format!("`{}` is the name of another device already", name.value);
            let line = self.line(other.span.start);
            section.here(what, format!("that is on line {line}; give each its own name"));
        }
        names.push(name.clone());
    }
}

/// The container that one is inside: one before it, so that none is inside itself.
fn outside(
    name: &str,
    section: &Section<'_>,
    outer: &At<&str>,
    all: &Everything<'_, '_>,
) -> Option<String> {
    let place = |name| all.containers.iter().position(|container| container.value == name);
    let (what, help) = match place(outer.value) {
        None => {
            let names = all.containers.iter().map(|container| container.value);
            let help = suggestion(outer.value, "containers", names);
            (format!("there is no container `{}`", outer.value), help)
        }
        Some(_) if outer.value == name => {
            ("a container is not inside itself".to_owned(), "name another container".to_owned())
        }
        Some(at) if Some(at) > place(name) => {
            let what = format!("`{}` comes after what is inside it", outer.value);
            (what, format!("write [container.{}] before this one", outer.value))
        }
        Some(_) => return Some(outer.value.to_owned()),
    };
    section.wrong("inside", outer.span.clone(), what, help);
    None
}
