//! How long functions and files are, how wide structs, how long comment lines, and how much is
//! `pub`.

use std::collections::{BTreeMap, BTreeSet};

use syn::spanned::Spanned as _;
use syn::visit::{self, Visit};

use super::sources::{Source, attributes, is_for_tests};

/// Lines of a function, from its `fn` to its last brace.
pub(crate) const FUNCTION_LINES: usize = 80;
/// Fields of a struct that has methods.
pub(crate) const STRUCT_FIELDS: usize = 20;
/// Lines of a file, of tests too.
pub(crate) const FILE_LINES: usize = 1_000;
/// Columns of a line with a comment. `rustfmt` keeps code within as many, and leaves comments
/// alone.
pub(crate) const COMMENT_COLUMNS: usize = 100;

/// Something with a length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sized {
    pub(crate) path: String,
    pub(crate) line: usize,
    pub(crate) name: String,
    pub(crate) size: usize,
}

/// The shape of some sources.
#[derive(Debug, Default)]
pub(crate) struct Shape {
    /// All files.
    pub(crate) files: Vec<Sized>,
    /// Functions outside tests, with their lines.
    pub(crate) functions: Vec<Sized>,
    /// Functions in tests, with their lines.
    pub(crate) test_functions: Vec<Sized>,
    /// Structs that have methods, with their fields.
    pub(crate) structs: Vec<Sized>,
    /// Lines with comments that are too long, with their columns.
    pub(crate) wide_comments: Vec<Sized>,
    /// `pub` items outside tests, by package.
    pub(crate) public: BTreeMap<String, usize>,
}

impl Shape {
    /// Measures all sources.
    pub(crate) fn of(sources: &[Source]) -> Shape {
        let mut shape = Shape::default();
        let with_methods = with_methods(sources);
        for source in sources {
            shape.files.push(Sized {
                path: source.path.clone(),
                line: 1,
                name: source.path.clone(),
                size: source.text.lines().count(),
            });
            shape.wide_comments.extend(wide_comments(source));
            let mut visitor = Visitor {
                source,
                with_methods: &with_methods,
                in_tests: source.is_test,
                shape: &mut shape,
            };
            visitor.visit_file(&source.syntax);
        }
        shape
    }

    /// What is larger than it may be, in words.
    pub(crate) fn findings(&self) -> Vec<String> {
        let kinds = [
            (&self.files, FILE_LINES, "lines of the file"),
            (&self.functions, FUNCTION_LINES, "lines of the function"),
            (&self.structs, STRUCT_FIELDS, "fields of the struct"),
            (&self.wide_comments, COMMENT_COLUMNS, "columns of a comment"),
        ];
        let mut findings = Vec::new();
        for (sized, most, what) in kinds {
            for one in sized.iter().filter(|one| one.size > most) {
                findings.push(format!(
                    "{}:{}: {} {what} {}; at most {most}",
                    one.path, one.line, one.size, one.name
                ));
            }
        }
        findings
    }
}

/// The crate-wide names of structs with an `impl` of their own that holds a function: package, name
/// and the folder at the top of `src/` in which the `impl` stands.
fn with_methods(sources: &[Source]) -> BTreeSet<(String, String, String)> {
    let mut names = BTreeSet::new();
    for source in sources.iter().filter(|source| !source.is_test) {
        for item in &source.syntax.items {
            let syn::Item::Impl(item) = item else {
                continue;
            };
            let has_methods = item
                .items
                .iter()
                .any(|item| matches!(item, syn::ImplItem::Fn(_)));
            if let (None, true, syn::Type::Path(of)) = (&item.trait_, has_methods, &*item.self_ty)
                && let Some(last) = of.path.segments.last()
            {
                let place = (source.package.clone(), top(source), last.ident.to_string());
                names.insert(place);
            }
        }
    }
    names
}

fn top(source: &Source) -> String {
    let module = source.module().unwrap_or_default();
    module.first().cloned().unwrap_or_default()
}

/// Lines that are too long and are a comment, or end in one.
fn wide_comments(source: &Source) -> Vec<Sized> {
    // Only lines that are too long are looked at.
    let long: Vec<(usize, &str)> = (1..)
        .zip(source.text.lines())
        .filter(|(_, line)| line.chars().count() > COMMENT_COLUMNS)
        .collect();
    let mut wide = Vec::new();
    for (number, line) in long {
        let begins = line.trim_start().starts_with("//");
        // Code behind which a comment goes over the edge: `rustfmt` leaves such a line alone.
        let behind = line
            .rfind(" // ")
            .is_some_and(|at| line[..at].matches('"').count() % 2 == 0);
        if begins || behind {
            wide.push(Sized {
                path: source.path.clone(),
                line: number,
                name: String::new(),
                size: line.chars().count(),
            });
        }
    }
    wide
}

struct Visitor<'a> {
    source: &'a Source,
    with_methods: &'a BTreeSet<(String, String, String)>,
    in_tests: bool,
    shape: &'a mut Shape,
}

impl Visitor<'_> {
    fn function(&mut self, signature: &syn::Signature, block: &syn::Block) {
        let start = signature.fn_token.span.start().line;
        let sized = Sized {
            path: self.source.path.clone(),
            line: start,
            name: signature.ident.to_string(),
            size: block.span().end().line + 1 - start,
        };
        match self.in_tests {
            true => self.shape.test_functions.push(sized),
            false => self.shape.functions.push(sized),
        }
    }

    fn public(&mut self, visibility: &syn::Visibility) {
        if matches!(visibility, syn::Visibility::Public(_)) && !self.in_tests {
            *self
                .shape
                .public
                .entry(self.source.package.clone())
                .or_default() += 1;
        }
    }
}

impl<'ast> Visit<'ast> for Visitor<'_> {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        let outside = self.in_tests;
        self.in_tests |= is_for_tests(attributes(item));
        match item {
            syn::Item::Fn(item) => {
                self.public(&item.vis);
                self.function(&item.sig, &item.block);
            }
            syn::Item::Struct(item) => {
                self.public(&item.vis);
                let place = (
                    self.source.package.clone(),
                    top(self.source),
                    item.ident.to_string(),
                );
                if !self.in_tests && self.with_methods.contains(&place) {
                    self.shape.structs.push(Sized {
                        path: self.source.path.clone(),
                        line: item.span().start().line,
                        name: item.ident.to_string(),
                        size: item.fields.len(),
                    });
                }
            }
            syn::Item::Enum(item) => self.public(&item.vis),
            syn::Item::Trait(item) => self.public(&item.vis),
            syn::Item::Type(item) => self.public(&item.vis),
            syn::Item::Const(item) => self.public(&item.vis),
            syn::Item::Static(item) => self.public(&item.vis),
            syn::Item::Mod(item) => self.public(&item.vis),
            syn::Item::Use(item) => self.public(&item.vis),
            // Nothing that is public by itself.
            _ => {}
        }
        visit::visit_item(self, item);
        self.in_tests = outside;
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        let outside = self.in_tests;
        self.in_tests |= is_for_tests(&item.attrs);
        self.public(&item.vis);
        self.function(&item.sig, &item.block);
        visit::visit_impl_item_fn(self, item);
        self.in_tests = outside;
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        if let Some(block) = &item.default {
            self.function(&item.sig, block);
        }
        visit::visit_trait_item_fn(self, item);
    }
}
