import paragraphs from '../../paragraphs.json'

export default function Page({ text }) {
  return <main>{text.map((paragraph, line) => <p key={line}>{paragraph}</p>)}</main>
}

// What is regenerated has to be in the props; it stands in the page twice, as JSON too.
// Half of it makes 20 KB of both.
export async function getStaticProps() {
  return { props: { text: paragraphs.slice(0, paragraphs.length / 2) }, revalidate: 3600 }
}

export async function getStaticPaths() {
  return { paths: [{ params: { number: '1' } }], fallback: 'blocking' }
}
