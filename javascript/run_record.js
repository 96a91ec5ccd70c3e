// What a run really did: its line under the image (lib_hires/webui/sampling/recording.py), with the lines
// of details after it, becomes one that opens.

(function() {
    const ran = 'HiRes Guidance ran: ', detail = '· ';

    function list(lines) {
        const ul = document.createElement('ul');
        for (const line of lines) {
            ul.appendChild(document.createElement('li')).textContent = line.slice(detail.length);
        }
        return ul;
    }

    // `comments`: the host's paragraph, lines of text with <br> between them.
    function fold(comments) {
        const lines = [...comments.childNodes].filter((node) => node.nodeType == Node.TEXT_NODE);
        const texts = lines.map((node) => node.textContent.trim());
        const first = texts.findIndex((text) => text.startsWith(ran));
        if (first < 0) return;
        let end = first + 1;
        while (end < texts.length && texts[end].startsWith(detail)) end += 1;
        const details = document.createElement('details');
        details.className = 'hires-guidance-record';
        details.appendChild(document.createElement('summary')).textContent = texts[first];
        details.appendChild(list(texts.slice(first + 1, end)));
        lines[first].before(details);
        for (const node of lines.slice(first, end)) {
            if (node.nextSibling?.nodeName == 'BR') node.nextSibling.remove();
            node.remove();
        }
    }

    onUiLoaded(() => {
        for (const tab of ['txt2img', 'img2img']) {
            const log = gradioApp().getElementById(`html_log_${tab}`);
            if (!log) continue;
            const foldAll = () => log.querySelectorAll('p.comments').forEach(fold);
            new MutationObserver(foldAll).observe(log, {childList: true, subtree: true});
        }
    });
})();
