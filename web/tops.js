// What the nodes show beside their definition: the text of the last run, and the widgets that the choices need.
import { app } from '/scripts/app.js'
import { api } from '/scripts/api.js'
import { ComfyWidgets } from '/scripts/widgets.js'

const TEXT = 'shown_text'
const TEXT_HEIGHT = 90

function textWidget(node) {
  const found = node.widgets?.find((widget) => widget.name === TEXT)
  if (found) return found
  const { widget } = ComfyWidgets.STRING(node, TEXT, ['STRING', { multiline: true }], app)
  widget.label = 'result'
  // Neither the saved workflow nor the prompt has the text: it is not an input of the node.
  widget.serialize = false
  widget.options.serialize = false
  widget.options.read_only = true
  widget.options.hideInPanel = true
  for (const element of [widget.inputEl, widget.element]) {
    if (element) element.readOnly = true
  }
  const [width, height] = node.size
  node.setSize([width, Math.max(height + TEXT_HEIGHT, node.computeSize()[1])])
  return widget
}

function showText(node, output) {
  const text = [output?.text ?? [], output?.notes ?? []].flat()
  if (!text.length) return
  textWidget(node).value = text.join('\n\n')
}

// Outputs are stored by the node's id, with the ids of the subgraphs around it before it.
function nodeOf(id) {
  let graph = app.rootGraph ?? app.graph
  const ids = String(id).split(':')
  const last = ids.pop()
  for (const outer of ids) graph = graph?.getNodeById(outer)?.subgraph
  return graph?.getNodeById(last)
}

const isOurs = (nodeData) => nodeData.name.startsWith('TOPS')

function isLinked(node, name) {
  const slot = node.inputs?.findIndex((input) => input.widget?.name === name) ?? -1
  return slot >= 0 && (node.isInputConnected?.(slot) ?? false)
}

// A widget whose definition has `shown_for` is shown where one of the named widgets has one of the values.
function followChoices(node, rules) {
  const named = (name) => node.widgets?.find((widget) => widget.name === name)
  for (const [name, choices] of rules) {
    const widget = named(name)
    if (!widget) continue
    const fits = Object.entries(choices).some(([other, values]) => {
      const chosen = named(other)
      return !chosen || isLinked(node, other) || values.includes(chosen.value)
    })
    widget.hidden = !fits && !isLinked(node, name)
  }
  node.setDirtyCanvas?.(true, true)
}

function rulesOf(nodeData) {
  const inputs = { ...nodeData.input?.required, ...nodeData.input?.optional }
  return Object.entries(inputs)
    .filter(([, spec]) => spec[1]?.shown_for)
    .map(([name, spec]) => [name, spec[1].shown_for])
}

function watchChoices(nodeType, rules) {
  const chosen = new Set(rules.flatMap(([, choices]) => Object.keys(choices)))
  const created = nodeType.prototype.onNodeCreated
  nodeType.prototype.onNodeCreated = function (...given) {
    created?.apply(this, given)
    for (const widget of this.widgets ?? []) {
      if (!chosen.has(widget.name)) continue
      const callback = widget.callback
      widget.callback = (...values) => {
        callback?.apply(widget, values)
        followChoices(this, rules)
      }
    }
    followChoices(this, rules)
  }
  const configured = nodeType.prototype.onConfigure
  nodeType.prototype.onConfigure = function (...given) {
    configured?.apply(this, given)
    followChoices(this, rules)
  }
}

// The frontend takes the titles of a pack's templates from the names of their files. A category of its own, such as those
// of ComfyUI's templates, has titles and descriptions.
const PACK = new URL(import.meta.url).pathname.split('/').at(-2)

async function cards(language, names) {
  const answer = await fetch(new URL('./templates.json', import.meta.url))
  const texts = await answer.json()
  const known = texts[language] ?? texts.en
  return Object.entries(known)
    .filter(([name]) => names.includes(name))
    .map(([name, card]) => ({ name, mediaType: 'image', mediaSubtype: 'jpg', ...card }))
}

function nameTheTemplates() {
  const ofPacks = api.getWorkflowTemplates?.bind(api)
  const ofCore = api.getCoreWorkflowTemplates?.bind(api)
  if (!ofPacks || !ofCore) return
  const named = async (language) => {
    try {
      return await cards(language, (await ofPacks())[PACK] ?? [])
    } catch (error) {
      console.warn('The cards of the TOPS templates have no titles.', error)
      return []
    }
  }
  api.getCoreWorkflowTemplates = async (language, ...more) => {
    const [categories, templates] = await Promise.all([ofCore(language, ...more), named(language)])
    const ours = { moduleName: PACK, title: 'TOPS Engine', type: 'image', templates }
    // Where ComfyUI has no templates in the language, the frontend asks this function again, for those in English.
    const others = categories.filter(({ moduleName }) => moduleName !== PACK)
    return templates.length ? [...others, ours] : others
  }
  api.getWorkflowTemplates = async () => {
    const { [PACK]: ours, ...others } = await ofPacks()
    return ours && !(await named('en')).length ? { [PACK]: ours, ...others } : others
  }
}
nameTheTemplates()

app.registerExtension({
  name: 'tops.nodes',

  setup() {
    // While a node runs, the frontend shows the text that arrives; the text of the last run would be mistaken for it.
    api.addEventListener('executing', ({ detail }) => {
      const node = detail == null ? null : nodeOf(detail?.node ?? detail)
      const widget = node?.widgets?.find((one) => one.name === TEXT)
      if (widget) widget.value = ''
    })
  },

  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!isOurs(nodeData)) return
    const rules = rulesOf(nodeData)
    if (rules.length) watchChoices(nodeType, rules)
    const executed = nodeType.prototype.onExecuted
    nodeType.prototype.onExecuted = function (output) {
      executed?.apply(this, [output])
      showText(this, output)
    }
  },

  // Called when outputs come back: after a change of the tab, or with a run of the history.
  onNodeOutputsUpdated(outputs) {
    for (const [id, output] of Object.entries(outputs)) {
      const node = nodeOf(id)
      if (node && isOurs({ name: node.type ?? '' })) showText(node, output)
    }
  },
})
