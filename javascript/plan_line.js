// The line below the accordions: asked for once, a moment after the last change.

(function() {
    const pause = 200; // milliseconds
    const timers = {}, taken = {};

    function element(tab, name) {
        return gradioApp().getElementById(`script_${tab}_hires_guidance_${name}`);
    }

    // Called by every control that the line depends on.
    window.hiresGuidanceChanged = function(tab) {
        soon(tab, () => ask(tab));
        return [];
    };

    function soon(tab, action) {
        clearTimeout(timers[tab]);
        timers[tab] = setTimeout(action, pause);
    }

    // Gradio 3 drops a press while the answer to an earlier one is awaited; that one is pressed again.
    function ask(tab) {
        taken[tab] = false;
        element(tab, 'plan_update').click();
        element(tab, 'drawing_update').click();
        soon(tab, () => taken[tab] || ask(tab));
    }

    // Called for a press that is not dropped. Puts the size that img2img's "Resize by" stands for in
    // the place of width and height.
    window.hiresGuidanceSizes = function(tab, names, values) {
        taken[tab] = true;
        const resizeBy = gradioApp().getElementById('img2img_tab_resize_by');
        if (tab != 'img2img' || !resizeBy || resizeBy.style.display == 'none') return values;
        const scale = gradioApp().querySelector('#img2img_scale input[type=number]').value;
        const [width, height] = currentImg2imgSourceResolution(0, 0, scale);
        if (!width) return values;
        const sizes = {width: Math.floor(width * scale), height: Math.floor(height * scale)};
        return values.map((value, place) => sizes[names[place]] ?? value);
    };

    window.hiresGuidanceConfirmed = function(name) {
        return confirm(`Delete the preset "${name}"?`) ? name : null;
    };

    onUiLoaded(() => {
        for (const tab of ['txt2img', 'img2img']) {
            element(tab, 'preset_refresh')?.click();
            element(tab, 'drawing_update')?.click();
        }
        const preview = gradioApp().getElementById('img2img_scale_resolution_preview');
        const tabs = gradioApp().getElementById('img2img_tabs_resize');
        const changed = () => window.hiresGuidanceChanged('img2img');
        if (preview) new MutationObserver(changed).observe(preview, {childList: true, subtree: true});
        tabs?.addEventListener('click', changed);
    });
})();
