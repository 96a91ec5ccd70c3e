// The plan below the techniques: computed once, a moment after the last change (lib_hires/webui/page/plan_line.py).
// Also the list of presets, which follows the kind of the loaded model.

(function() {
    const pause = 200; // milliseconds
    const tabs = ['txt2img', 'img2img'];
    const timers = {}, taken = {}, offered = {};

    function element(tab, name) {
        return gradioApp().getElementById(`script_${tab}_hires_guidance_${name}`);
    }

    // Called by every control that the plan depends on.
    window.hiresGuidanceChanged = function(tab) {
        soon(tab, () => update(tab));
        return [];
    };

    function soon(tab, action) {
        clearTimeout(timers[tab]);
        timers[tab] = setTimeout(action, pause);
    }

    // Gradio 3 drops a press while the response to an earlier one is awaited; that one is pressed again.
    function update(tab) {
        const button = element(tab, 'plan_update');
        if (!button) return;
        taken[tab] = false;
        button.click();
        soon(tab, () => taken[tab] || update(tab));
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
        return values.map((value, index) => sizes[names[index]] ?? value);
    };

    window.hiresGuidanceConfirmed = function(name) {
        return confirm(`Delete the preset "${name}"?`) ? name : null;
    };

    // The response names the loaded model's native side; another one than before gets its own presets.
    function followModel(tab) {
        const page = element(tab, 'drawing')?.querySelector('.hires-guidance')?.dataset.page;
        const native = page && JSON.parse(page).native;
        if (!native || native == offered[tab]) return;
        offered[tab] = native;
        refreshPresets(tab);
    }

    // Not when the list is opened: Gradio 4 would show only what matches the chosen name.
    function refreshPresets(tab) {
        element(tab, 'preset_refresh')?.click();
    }

    // Whenever another model may be loaded: by a setting, and in Forge by a run.
    function followTab(tab) {
        const changed = () => window.hiresGuidanceChanged(tab);
        const content = {childList: true, subtree: true};
        const drawing = element(tab, 'drawing'), log = gradioApp().getElementById(`html_log_${tab}`);
        if (drawing) new MutationObserver(() => followModel(tab)).observe(drawing, content);
        if (log) new MutationObserver(changed).observe(log, content);
        element(tab, 'accordion')?.querySelector('.label-wrap')?.addEventListener('click', () => {
            changed();
            refreshPresets(tab);
        });
        refreshPresets(tab);
        changed();
    }

    onUiLoaded(() => {
        tabs.forEach(followTab);
        gradioApp().querySelector('#tabs .tab-nav')?.addEventListener('click', () => tabs.forEach(refreshPresets));
        const preview = gradioApp().getElementById('img2img_scale_resolution_preview');
        const resize = gradioApp().getElementById('img2img_tabs_resize');
        const changed = () => window.hiresGuidanceChanged('img2img');
        if (preview) new MutationObserver(changed).observe(preview, {childList: true, subtree: true});
        resize?.addEventListener('click', changed);
    });

    let checkpoint;
    onOptionsChanged(() => {
        const chosen = `${opts.sd_model_checkpoint} ${opts.sd_checkpoint_hash} ${opts.hires_guidance_native_size}`;
        if (checkpoint !== undefined && chosen !== checkpoint) tabs.forEach(window.hiresGuidanceChanged);
        checkpoint = chosen;
    });
})();
