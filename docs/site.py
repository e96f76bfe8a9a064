"""Hook of MkDocs: what the site shows beside the pages in docs/.

README.md is the home page. A file of the repository that a page links to is part of the site, so that a link that is
right on a code host is right there too. Each ``api/NAME.md`` of the nav is the reference of the module NAME.
"""

import posixpath
import re
from pathlib import Path

from griffe import Extension
from mkdocs.structure.files import File
from pymdownx.slugs import slugify

ROOT = Path(__file__).parents[1]
LINK = re.compile(r'(?<=\]\()(?!\w+:|#)[^)#\s]+')

#: ``a, b: text`` among the arguments of a docstring.
SHARED = re.compile(r'^( +)(\*{0,2}\w+(?:, \*{0,2}\w+)+): (.*(?:\n\1 +.*)*)$', re.MULTILINE)


class SharedDescriptions(Extension):
    """Arguments that share a description in a docstring, which Google's style does not know, get it each."""

    def on_instance(self, *, obj, **kwargs):
        """See griffe."""
        if obj.docstring:
            obj.docstring.value = SHARED.sub(
                lambda found: '\n'.join(f'{found[1]}{name}: {found[3]}' for name in found[2].split(', ')),
                obj.docstring.value,
            )


def on_config(config):
    """Anchors as code hosts make them."""
    config.mdx_configs['toc']['slugify'] = slugify(case='lower')


def on_files(files, config):
    """Add the home page, the reference, and what pages link to outside docs/."""
    files.append(File.generated(config, 'index.md', content=(ROOT / 'README.md').read_text(encoding='utf-8')))
    for page in re.findall(r"'(api/\S+\.md)'", repr(config.nav)):
        files.append(File.generated(config, page, content=reference(page[len('api/') : -len('.md')])))
    for page in list(files.documentation_pages()):
        for link in LINK.findall(page.content_string):
            path = in_site(page.src_uri, link)
            if not files.get_file_from_path(path) and (ROOT / path).is_file():
                files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Let links lead to where the files are in the site."""
    here = posixpath.dirname(page.file.src_uri)
    return LINK.sub(lambda link: posixpath.relpath(in_site(page.file.src_uri, link[0]), here), markdown)


def reference(module):
    """What mkdocstrings fills with all that a module exports; of a package that exports nothing, with its modules."""
    init = ROOT / module.replace('.', '/') / '__init__.py'
    submodules = init.is_file() and '__all__' not in init.read_text(encoding='utf-8')
    return f'# {module}\n\n::: {module}\n    options: {{show_submodules: {str(submodules).lower()}}}\n'


def in_site(page, link):
    """Where the target of a link is in the site: docs/ is its root, and so is the root of the repository."""
    folder = (ROOT / 'docs' if (ROOT / 'docs' / page).exists() else ROOT) / posixpath.dirname(page)
    path = posixpath.relpath(posixpath.normpath(posixpath.join(folder.as_posix(), link)), ROOT.as_posix())
    return 'index.md' if path == 'README.md' else path.removeprefix('docs/')
