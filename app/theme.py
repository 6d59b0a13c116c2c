"""Colours, sizes and fonts as a Gradio theme: an instrument, one accent that means latents, no web fonts.

What Gradio has no name for (the stage under images, data colours) is in assets/app/app.css.
"""

import gradio as gr

FONT = ["-apple-system", "BlinkMacSystemFont", "Segoe UI", "Roboto", "Helvetica Neue", "Noto Sans"]
FONT += ["DejaVu Sans Condensed", "system-ui", "sans-serif"]
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace"]

COLOURS = {
    "body_background_fill": ("#f3f4f6", "#0d1013"),
    "block_background_fill": ("#ffffff", "#15191d"),
    "background_fill_primary": ("#ffffff", "#15191d"),
    "background_fill_secondary": ("#e9ecef", "#20262c"),
    "input_background_fill": ("#ffffff", "#101317"),
    "border_color_primary": ("#d8dce1", "#2b323a"),
    "input_border_color": ("#858e98", "#6d7884"),
    "input_border_color_focus": ("#0a6a72", "#4fc6cb"),
    "body_text_color": ("#14181d", "#e8ebee"),
    "body_text_color_subdued": ("#535d67", "#a3adb7"),
    "block_info_text_color": ("#535d67", "#a3adb7"),
    "block_label_text_color": ("#535d67", "#a3adb7"),
    "block_title_text_color": ("#535d67", "#a3adb7"),
    "error_text_color": ("#a3261b", "#ff9d92"),
    "error_background_fill": ("#fdecea", "#35191a"),
    "color_accent_soft": ("#dceff0", "#12363a"),
    "button_primary_background_fill": ("#0a6a72", "#4fc6cb"),
    "button_primary_background_fill_hover": ("#085760", "#74d8dc"),
    "button_primary_border_color": ("#0a6a72", "#4fc6cb"),
    "button_primary_border_color_hover": ("#085760", "#74d8dc"),
    "button_primary_text_color": ("#ffffff", "#05191b"),
    "button_primary_text_color_hover": ("#ffffff", "#05191b"),
    "button_secondary_background_fill": ("#ffffff", "#1b2025"),
    "button_secondary_background_fill_hover": ("#eef0f2", "#262d34"),
    "button_secondary_border_color": ("#858e98", "#6d7884"),
    "button_secondary_border_color_hover": ("#535d67", "#a3adb7"),
    "button_secondary_text_color": ("#14181d", "#e8ebee"),
    "slider_color": ("#0a6a72", "#4fc6cb"),
    "checkbox_background_color_selected": ("#0a6a72", "#4fc6cb"),
    "checkbox_border_color_selected": ("#0a6a72", "#4fc6cb"),
    "checkbox_label_background_fill": ("transparent", "transparent"),
    "checkbox_label_background_fill_hover": ("transparent", "transparent"),
    "checkbox_label_background_fill_selected": ("#dceff0", "#12363a"),
    "checkbox_label_border_color": ("transparent", "transparent"),
    "checkbox_label_border_color_hover": ("transparent", "transparent"),
    "checkbox_label_text_color": ("#535d67", "#a3adb7"),
    "checkbox_label_text_color_selected": ("#14181d", "#e8ebee"),
}
"""Gradio's theme variable → (light, dark)."""


def make_theme() -> gr.themes.Base:
    """The theme for `launch(theme=…)`."""
    theme = gr.themes.Base(
        font=FONT,  # plain strings: the defaults fetch web fonts
        font_mono=MONO,
        spacing_size=gr.themes.Size("2px", "4px", "6px", "8px", "12px", "16px", "24px", name="ins_spacing"),
        text_size=gr.themes.Size("11px", "12px", "13px", "14px", "17px", "20px", "34px", name="ins_text"),
        radius_size=gr.themes.Size("2px", "3px", "3px", "4px", "6px", "6px", "8px", name="ins_radius"),
    )
    pairs = {name: light for name, (light, _) in COLOURS.items()}
    pairs |= {f"{name}_dark": dark for name, (_, dark) in COLOURS.items()}
    theme.set(
        **pairs,
        color_accent="#0a6a72",
        layout_gap="16px",
        block_padding="16px",
        block_radius="6px",
        block_border_width="0px",
        block_label_text_size="12px",
        block_title_text_size="12px",
        block_title_text_weight="400",
        block_shadow="none",
        block_info_text_size="12px",
        input_border_width="1px",
        input_radius="4px",
        input_text_size="14px",
        input_shadow="none",
        input_shadow_focus="none",
        input_padding="7px 8px",
        button_border_width="1px",
        button_large_radius="4px",
        button_medium_radius="4px",
        button_small_radius="4px",
        button_large_text_size="14px",
        button_large_text_weight="600",
        button_medium_text_size="13px",
        button_medium_text_weight="400",
        button_small_text_size="13px",
        button_small_text_weight="400",
        checkbox_label_shadow="none",
        checkbox_label_text_size="13px",
        checkbox_shadow="none",
    )
    theme.color_accent_dark = "#4fc6cb"  # set() has no such argument; the attribute is read all the same
    return theme
