// The colours of our sockets and links. Other types keep the colours of the theme.
import { app } from '/scripts/app.js'

const COLOURS = {
  TOPS_MODEL: '#4fb8af',
  TOPS_PRUNING: '#e0a458',
  TOPS_HISTORY: '#9d8df1',
  TOPS_STATS: '#7fa650',
}

app.registerExtension({
  name: 'tops.colours',
  setup() {
    Object.assign(app.canvas.default_connection_color_byType, COLOURS)
    Object.assign(app.canvas.constructor.link_type_colors, COLOURS)
  },
})
