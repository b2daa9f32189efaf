// The colours of our sockets and links; other types keep the colours of the theme.
import { app } from '/scripts/app.js'

const COLOURS = {
  TOPS_MODEL: '#4fb8af',
  TOPS_PRUNING: '#e0a458',
  TOPS_HISTORY: '#9d8df1',
  TOPS_STATS: '#9fc65f',
}

// The new renderer reads variables of the page. A style sheet, because the theme removes variables of the root element.
const style = document.createElement('style')
const variables = Object.entries(COLOURS).map(([type, colour]) => `--color-datatype-${type}: ${colour};`)
style.textContent = `:root { ${variables.join(' ')} }`
document.head.append(style)

// The classic renderer has tables, which each theme empties of types it does not know.
function paint() {
  Object.assign(app.canvas.default_connection_color_byType, COLOURS)
  Object.assign(app.canvas.constructor.link_type_colors, COLOURS)
}

app.registerExtension({
  name: 'tops.colours',
  setup() {
    app.ui.settings.addEventListener('Comfy.ColorPalette.change', () => setTimeout(paint))
  },
  afterConfigureGraph: paint,
  nodeCreated(node) {
    if (node.comfyClass?.startsWith('TOPS')) paint()
  },
})
