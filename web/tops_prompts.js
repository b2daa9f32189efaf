// The menu of a TOPS node saves its prompt in the user's prompts library, and deletes it from there.
import { app } from '/scripts/app.js'
import { api } from '/scripts/api.js'

const FILE = 'tops_prompts.json'

// The widget that chooses from the library, and the widget with the text of the node's own prompt.
const WIDGETS = [
  ['preset', 'prompt'],
  ['style', 'custom_prompt'],
]

async function savedPrompts() {
  const response = await api.getUserData(FILE)
  return response.ok ? await response.json() : {}
}

async function keep(prompts) {
  await api.storeUserData(FILE, prompts)
  await app.refreshComboInNodes()
}

async function savePrompt(choice, text) {
  const name = (await app.extensionManager.dialog.prompt({
    title: 'Save this prompt',
    message: 'The name of the preset:',
    defaultValue: '',
  }))?.trim()
  if (!name) return
  const prompts = await savedPrompts()
  if (choice.options.values.includes(name) && !(name in prompts)) {
    tell('error', `“${name}” is a preset of TOPS`, 'Choose another name.')
    return
  }
  await keep({ ...prompts, [name]: text })
  tell('success', `“${name}” is in the prompts library`, `Choose it as ${choice.name}.`)
}

async function deletePrompt(choice) {
  const { [choice.value]: gone, ...others } = await savedPrompts()
  if (gone === undefined) {
    tell('warn', `“${choice.value}” is not a prompt that you saved`, 'Choose the prompt to delete first.')
    return
  }
  choice.value = choice.options.values[0]
  await keep(others)
}

function tell(severity, summary, detail) {
  app.extensionManager.toast.add({ severity, summary, detail, life: 6000 })
}

app.registerExtension({
  name: 'tops.prompts',
  getNodeMenuItems(node) {
    if (!node.comfyClass?.startsWith('TOPS')) return []
    const find = (name) => node.widgets?.find((widget) => widget.name === name)
    const pair = WIDGETS.map((names) => names.map(find)).find(([choice, text]) => choice && text)
    if (!pair) return []
    const [choice, text] = pair
    const items = [
      {
        content: 'Save prompt as preset…',
        disabled: !text.value?.trim(),
        callback: () => void savePrompt(choice, text.value),
      },
    ]
    if (choice.value !== choice.options.values[0]) {
      items.push({ content: `Delete preset “${choice.value}”`, callback: () => void deletePrompt(choice) })
    }
    return items
  },
})
