//! Which file of a crate uses which: from the tokens, so that paths inside macros count too.
//!
//! A module uses another when a path of it leads there: `crate::a::b::X`, `super::b::X`, a child's
//! name in front of `::`, or a name that a `use` has bound to a module. Tests and their modules do
//! not count. A module that is only declared is not used.

use std::collections::{BTreeMap, BTreeSet};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

use super::sources::{Source, attributes, is_for_tests};

/// A module of a crate, by the names of its path.
pub(crate) type Module = Vec<String>;

/// What each module of one crate uses.
pub(crate) type Uses = BTreeMap<Module, BTreeSet<Module>>;

/// Reads the sources of one crate. `lib.rs` and `main.rs` take no part: the root joins all.
pub(crate) fn of(sources: &[&Source]) -> Uses {
    let modules: BTreeSet<Module> = sources
        .iter()
        .filter_map(|source| source.module())
        .collect();
    let mut uses = Uses::new();
    for source in sources {
        let Some(module) = source.module() else {
            continue;
        };
        let reader = Reader::new(&modules, &module);
        let mut used = BTreeSet::new();
        let mut names = BTreeMap::new();
        for paths in [Look::Names, Look::Uses] {
            for item in source.syntax.items.iter() {
                if is_for_tests(attributes(item)) {
                    continue;
                }
                let tokens: Vec<TokenTree> = tokens_of(source, item).into_iter().collect();
                match paths {
                    Look::Names => reader.bound_names(item, &mut names),
                    Look::Uses => reader.look(&tokens, &names, &mut used),
                }
            }
        }
        used.remove(&module);
        uses.insert(module, used);
    }
    uses
}

/// What one pass over a file looks for.
#[derive(Clone, Copy)]
enum Look {
    /// Names that a `use` binds to modules.
    Names,
    /// Modules that paths lead to.
    Uses,
}

/// The tokens of an item, from the text of the file: `syn` gives none back without printing.
fn tokens_of(source: &Source, item: &syn::Item) -> TokenStream {
    use syn::spanned::Spanned as _;
    let span = item.span();
    let lines: Vec<&str> = source
        .text
        .lines()
        .skip(span.start().line - 1)
        .take(span.end().line + 1 - span.start().line)
        .collect();
    let text = lines.join("\n");
    text.parse()
        .unwrap_or_else(|error| panic!("an item that parsed has tokens: {error}: {text}"))
}

struct Reader<'a> {
    modules: &'a BTreeSet<Module>,
    module: &'a Module,
    /// Names of the modules right below this one.
    children: BTreeSet<&'a str>,
}

impl<'a> Reader<'a> {
    fn new(modules: &'a BTreeSet<Module>, module: &'a Module) -> Reader<'a> {
        let children = modules
            .iter()
            .filter(|other| other.len() == module.len() + 1 && other.starts_with(module))
            .filter_map(|other| other.last())
            .map(String::as_str)
            .collect();
        Reader {
            modules,
            module,
            children,
        }
    }

    /// The module in which the path ends or whose item it names.
    fn module_of(&self, path: &[String]) -> Option<Module> {
        (1..=path.len())
            .rev()
            .map(|length| &path[..length])
            .find(|front| self.modules.contains(*front))
            .map(<[String]>::to_vec)
    }

    /// Notes the names that a `use` binds to modules.
    fn bound_names(&self, item: &syn::Item, names: &mut BTreeMap<String, Module>) {
        let syn::Item::Use(item) = item else {
            return;
        };
        let mut paths = Vec::new();
        flatten(&item.tree, &mut Vec::new(), &mut paths);
        for (path, name) in paths {
            if let Some(path) = self.absolute(&path)
                && self.modules.contains(&path)
            {
                names.insert(name, path);
            }
        }
    }

    /// A path as it is written, seen from the root of the crate; none when it leads out of it.
    fn absolute(&self, path: &[String]) -> Option<Module> {
        let mut at = match path.first()?.as_str() {
            "crate" => Module::new(),
            "self" => self.module.clone(),
            "super" => self.module[..self.module.len() - 1].to_vec(),
            child if self.children.contains(child) => {
                let mut at = self.module.clone();
                at.push(child.into());
                at
            }
            _ => return None,
        };
        for name in &path[1..] {
            match name.as_str() {
                "super" => drop(at.pop()),
                "self" => {}
                name => at.push(name.into()),
            }
        }
        Some(at)
    }

    /// Notes the modules that paths among the tokens lead to.
    fn look(
        &self,
        tokens: &[TokenTree],
        names: &BTreeMap<String, Module>,
        used: &mut BTreeSet<Module>,
    ) {
        let mut at = 0;
        while at < tokens.len() {
            if let TokenTree::Group(group) = &tokens[at] {
                let inner: Vec<TokenTree> = group.stream().into_iter().collect();
                self.look(&inner, names, used);
            }
            let TokenTree::Ident(first) = &tokens[at] else {
                at += 1;
                continue;
            };
            // Not behind `::`, as in `<A as B>::c`; one colon is a type's.
            let starts = at < 2 || !(is_colon(&tokens[at - 1]) && is_colon(&tokens[at - 2]));
            let mut paths = Vec::new();
            let next = read_path(tokens, at, &mut Vec::new(), &mut paths);
            if starts {
                for path in paths.iter().filter(|path| path.len() > 1) {
                    let absolute = match names.get(&first.to_string()) {
                        Some(module) => {
                            let mut absolute = module.clone();
                            absolute.extend(path[1..].iter().cloned());
                            Some(absolute)
                        }
                        None => self.absolute(path),
                    };
                    used.extend(absolute.and_then(|path| self.module_of(&path)));
                }
            }
            at = next.max(at + 1);
        }
    }
}

fn is_colon(token: &TokenTree) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == ':')
}

/// Reads the path that begins at `at`, with every path of a group in braces behind it; returns
/// where the tokens go on.
fn read_path(
    tokens: &[TokenTree],
    mut at: usize,
    front: &mut Vec<String>,
    paths: &mut Vec<Vec<String>>,
) -> usize {
    let depth = front.len();
    while let Some(TokenTree::Ident(name)) = tokens.get(at) {
        front.push(name.to_string());
        at += 1;
        let joined = matches!(
            (tokens.get(at), tokens.get(at + 1)),
            (Some(first), Some(second)) if is_colon(first) && is_colon(second)
        );
        if !joined {
            break;
        }
        if let Some(TokenTree::Group(group)) = tokens.get(at + 2)
            && group.delimiter() == Delimiter::Brace
        {
            let inner: Vec<TokenTree> = group.stream().into_iter().collect();
            let mut inside = 0;
            while inside < inner.len() {
                inside = read_path(&inner, inside, front, paths).max(inside + 1);
            }
            front.truncate(depth);
            return at + 3;
        }
        if !matches!(tokens.get(at + 2), Some(TokenTree::Ident(_))) {
            break;
        }
        at += 2;
    }
    if front.len() > depth {
        paths.push(front.clone());
    }
    front.truncate(depth);
    at
}

/// Every path of a `use`, with the name that it binds.
fn flatten(tree: &syn::UseTree, front: &mut Vec<String>, paths: &mut Vec<(Vec<String>, String)>) {
    match tree {
        syn::UseTree::Path(path) => {
            front.push(path.ident.to_string());
            flatten(&path.tree, front, paths);
            front.pop();
        }
        syn::UseTree::Name(name) if name.ident == "self" => {
            let bound = front.last().cloned().unwrap_or_default();
            paths.push((front.clone(), bound));
        }
        syn::UseTree::Name(name) => {
            let mut path = front.clone();
            path.push(name.ident.to_string());
            paths.push((path, name.ident.to_string()));
        }
        syn::UseTree::Rename(rename) => {
            let mut path = front.clone();
            path.push(rename.ident.to_string());
            paths.push((path, rename.rename.to_string()));
        }
        syn::UseTree::Glob(_) => {}
        syn::UseTree::Group(group) => {
            for tree in &group.items {
                flatten(tree, front, paths);
            }
        }
    }
}

/// Modules that use each other, however many steps apart: each circle once, sorted.
pub(crate) fn circles(uses: &Uses) -> Vec<Vec<Module>> {
    let reached: BTreeMap<&Module, BTreeSet<&Module>> = uses
        .keys()
        .map(|module| (module, reach(uses, module)))
        .collect();
    let mut circles = BTreeSet::new();
    for (module, all) in &reached {
        let circle: Vec<Module> = all
            .iter()
            .filter(|other| {
                reached
                    .get(*other)
                    .is_some_and(|back| back.contains(module))
            })
            .map(|other| (*other).clone())
            .collect();
        if circle.len() > 1 {
            circles.insert(circle);
        }
    }
    circles.into_iter().collect()
}

/// All modules that can be come to from this one.
fn reach<'a>(uses: &'a Uses, from: &Module) -> BTreeSet<&'a Module> {
    let mut reached = BTreeSet::new();
    let mut next: Vec<&Module> = uses.get(from).into_iter().flatten().collect();
    while let Some(module) = next.pop() {
        if reached.insert(module) {
            next.extend(uses.get(module).into_iter().flatten());
        }
    }
    reached
}

/// The modules that the root of a crate declares, in its order: the floors.
pub(crate) fn floors(root: &Source) -> Vec<String> {
    let items = root.syntax.items.iter();
    items
        .filter(|item| !is_for_tests(attributes(item)))
        .filter_map(|item| match item {
            syn::Item::Mod(item) => Some(item.ident.to_string()),
            _ => None,
        })
        .collect()
}

/// Uses of a module of a higher floor: who, and what it uses.
pub(crate) fn up_the_stairs(uses: &Uses, floors: &[String]) -> Vec<(Module, Module)> {
    let floor = |module: &Module| {
        floors
            .iter()
            .position(|floor| Some(floor) == module.first())
    };
    let mut wrong = Vec::new();
    for (module, used) in uses {
        for other in used.iter().filter(|other| other.first() != module.first()) {
            if floor(other) > floor(module) {
                wrong.push((module.clone(), other.clone()));
            }
        }
    }
    wrong
}
