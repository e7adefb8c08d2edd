//! Data forms (XEP-0004): the reading of a submitted one, and the writing of fields.

use std::borrow::Cow;

use crate::xml::{Element, ns, write};

/// A form somebody filled in. Unknown fields are passed over; of several with one name the first counts.
pub(super) struct Form<'a>(&'a Element);

impl<'a> Form<'a> {
    /// The form inside a request.
    pub(super) fn of(request: &'a Element) -> Option<Self> {
        request.child("x", ns::FORMS).map(Self)
    }

    /// The first value of a field.
    pub(super) fn value(&self, name: &str) -> Option<Cow<'a, str>> {
        let mut fields = self.0.elements();
        let field = fields
            .find(|field| field.is("field", ns::FORMS) && field.attribute("var") == Some(name))?;
        field.child("value", ns::FORMS).map(Element::text)
    }
}

/// Appends a form of that type.
pub(super) fn write_form(out: &mut Vec<u8>, kind: &str, fields: impl FnOnce(&mut Vec<u8>)) {
    write::element(out, "x", &[("xmlns", ns::FORMS), ("type", kind)], fields);
}

/// Appends the field that names the form's kind.
pub(super) fn write_form_type(out: &mut Vec<u8>, value: &str) {
    write_field(out, "FORM_TYPE", Some("hidden"), [value]);
}

/// Appends a field for people to read, with a label.
pub(super) fn write_labelled<'a>(
    out: &mut Vec<u8>,
    name: &str,
    label: &str,
    values: impl IntoIterator<Item = &'a str>,
) {
    let attributes = [("var", name), ("type", "text-multi"), ("label", label)];
    write::element(out, "field", &attributes, |out| {
        for value in values {
            write::element(out, "value", &[], |out| write::text(out, value));
        }
    });
}

/// Appends a field.
pub(super) fn write_field<'a>(
    out: &mut Vec<u8>,
    name: &str,
    kind: Option<&str>,
    values: impl IntoIterator<Item = &'a str>,
) {
    let values = |out: &mut Vec<u8>| {
        for value in values {
            write::element(out, "value", &[], |out| write::text(out, value));
        }
    };
    match kind {
        Some(kind) => write::element(out, "field", &[("var", name), ("type", kind)], values),
        None => write::element(out, "field", &[("var", name)], values),
    }
}
