// What the page of TOPS Studio has beside ComfyUI's frontend: its name, and the way to ComfyUI.
import { app } from '/scripts/app.js'
import { api } from '/scripts/api.js'

const NAME = 'TOPS Studio'

// The frontend writes its own name into the title at every change of the workflow or of the progress.
function nameTheTab() {
  const title = document.title.replace(/ComfyUI$/, NAME)
  if (title !== document.title) document.title = title
}
nameTheTab()
new MutationObserver(nameTheTab).observe(document.querySelector('title'), { childList: true })

function tell(severity, summary, detail) {
  app.extensionManager.toast.add({ severity, summary, detail, life: 12000 })
}

async function openInComfyUI() {
  const workflow = app.extensionManager.workflow?.activeWorkflow
  const name = workflow?.filename ?? 'workflow'
  const { workflow: graph } = await app.graphToPrompt()
  const response = await api.fetchApi('/tops/open_in_comfyui', {
    method: 'POST',
    body: JSON.stringify({ name, graph }),
  })
  if (!response.ok) {
    tell('error', 'The workflow is not in ComfyUI', await response.text())
    return
  }
  const { url, saved } = await response.json()
  tell('success', 'The workflow is in ComfyUI', `Open ${saved} there, in the panel Workflows.`)
  window.open(url, '_blank', 'noopener')
}

app.registerExtension({
  name: 'tops.studio',
  commands: [
    {
      id: 'tops.openInComfyUI',
      label: 'Open in ComfyUI',
      icon: 'pi pi-external-link',
      function: openInComfyUI,
    },
  ],
  menuCommands: [{ path: ['File'], commands: ['tops.openInComfyUI'] }],
  aboutPageBadges: [
    { label: NAME, url: 'https://github.com/tops-engine/tops-engine', icon: 'pi pi-github' },
  ],
})
